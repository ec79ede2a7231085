// Every method on every backbone: the same hidden states, loss and gradients on a GPU as on the
// host; steps whose results repeat bit by bit; and nothing that makes the host wait for the GPU.
#include <optional>

#include "tests/adapters/backbone_contract.h"
#include "tests/gpu/no_waiting.h"

namespace graft::adapters {
namespace {

using ::graft::testing::NoWaiting;

const torch::Device kGpu(torch::kCUDA, 0);

class GpuContract : public BackboneContract {
 protected:
  struct Result {
    Tensor h, loss, gradients;
  };

  Result Step(torch::Device device, bool recompute = false, bool may_wait = true) {
    device_ = device;
    const Adapted adapted = Adapt(/*trained=*/true, recompute);
    MicroBatch batch = Samples({0, 1, 2});
    batch.target_rows = {1, 2, 5};
    batch.target_ids = {7, 0, 100};
    models::SiteContext context;
    context.batch = &batch;
    context.training = true;
    std::optional<NoWaiting> no_waiting;
    if (!may_wait) no_waiting.emplace();
    const Tensor h = adapted.model->Layers(adapted.model->Embed(context), context);
    const bool has_head = !models::TaskHeadOf(config_).has_dense;
    const Tensor loss = has_head ? adapted.model->LossSum(h, context) : h.square().sum();
    if (loss.requires_grad()) torch::autograd::backward({loss}, {});
    no_waiting.reset();
    return {h.detach().to(torch::kCPU), loss.detach().to(torch::kCPU),
            adapted.set->gradients().to(torch::kCPU)};
  }
};

TEST_P(GpuContract, GivesWhatTheHostGives) {
  const Result host = Step(torch::kCPU);
  for (const bool recompute : {false, true}) {
    const Result gpu = Step(kGpu, recompute);
    EXPECT_LT(RelativeError(gpu.h, host.h), 1e-5);
    EXPECT_LT(RelativeError(gpu.loss, host.loss), 1e-5);
    if (host.gradients.numel() > 0) {
      EXPECT_LT(RelativeError(gpu.gradients, host.gradients), 1e-4);
    }
  }
}

TEST_P(GpuContract, RepeatsBitByBit) {
  const Result once = Step(kGpu), again = Step(kGpu);
  EXPECT_TRUE(at::equal(once.h, again.h));
  EXPECT_TRUE(at::equal(once.loss, again.loss));
  EXPECT_TRUE(at::equal(once.gradients, again.gradients));
}

TEST_P(GpuContract, AStepDoesNotWaitForTheGpu) {
  Step(kGpu);  // what is copied there once and kept
  EXPECT_NO_THROW(Step(kGpu, /*recompute=*/false, /*may_wait=*/false));
  {
    const NoWaiting no_waiting;
    EXPECT_ANY_THROW(at::ones({1}, kGpu).item());  // the switch works
  }
}

INSTANTIATE_TEST_SUITE_P(All, GpuContract, AllFamiliesAndMethods(), RowName);

}  // namespace
}  // namespace graft::adapters
