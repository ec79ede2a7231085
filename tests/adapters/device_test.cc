// The way of devices other than the host, without one: its arithmetic on host tensors against the
// host's own loops. tests/gpu has the same rows on a GPU.
#include "models/device.h"
#include "adapters/dropout.h"
#include "adapters/row_tables.h"
#include "models/gpu_kernels.h"
#include "tests/adapters/backbone_contract.h"

namespace graft::adapters {
namespace {

class DeviceContract : public BackboneContract {};

TEST_P(DeviceContract, GivesWhatTheHostsLoopsGive) {
  const MicroBatch batch = Samples({0, 1, 2});
  const Adapted host = Adapt(/*trained=*/true), device = Adapt(/*trained=*/true);
  const Tensor want = Run(*host.model, batch, /*training=*/true);
  RunBackward(want);
  const models::DeviceKernelsOnHost scope;
  const Tensor got = Run(*device.model, batch, /*training=*/true);
  RunBackward(got);
  EXPECT_LT(RelativeError(got, want), 1e-5);
  if (host.set->size() > 0) {
    EXPECT_LT(RelativeError(device.set->gradients(), host.set->gradients()), 1e-4);
  }
}

INSTANTIATE_TEST_SUITE_P(All, DeviceContract, AllFamiliesAndMethods(), RowName);

TEST(DeviceKernelsTest, CompileWithoutAGpu) {
  for (const char* architecture : {"sm_80", "sm_90", "sm_100"}) {
    for (const models::GpuKernels::Variant variant :
         {models::GpuKernels::Variant{false, 1}, {false, 4}, {true, 1}, {true, 8}}) {
      for (models::GpuKernels* const kernels : {&DropoutKernel(), &RowTableKernels()}) {
        const auto code = kernels->Compile(variant, architecture);
        ASSERT_TRUE(code.ok()) << code.status();
        EXPECT_GT(code->size(), 1000u);
      }
    }
  }
}

}  // namespace
}  // namespace graft::adapters
