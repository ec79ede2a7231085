// The order in which autograd's thread for a GPU works makes the same gradients final at the same
// moments as on the host.
#include "tests/sharding/final_gradients.h"

namespace graft::testing {
namespace {

class GpuFinalGradients : public FinalGradients {
 protected:
  void SetUp() override {
    FinalGradients::SetUp();
    device_ = torch::Device(torch::kCUDA, 0);
  }
};

TEST_P(GpuFinalGradients, AreWhatStartsInsideThePass) {
  for (const bool recompute : {false, true}) {
    SCOPED_TRACE(recompute);
    ExpectFinal(recompute);
  }
}

INSTANTIATE_TEST_SUITE_P(All, GpuFinalGradients, adapters::AllFamiliesAndMethods(),
                         adapters::RowName);

}  // namespace
}  // namespace graft::testing
