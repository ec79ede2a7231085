// The way of devices other than the host, without one: its arithmetic on host tensors against the
// host's own loops, and whole steps on LibTorch's `meta` device, which has shapes but no numbers,
// so that a tensor left on the host or a number that the host reads is an error. tests/gpu has the
// same rows on a GPU.
#include "models/device.h"
#include "adapters/dropout.h"
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

TEST_P(DeviceContract, AStepReadsNothingBack) {
  device_ = torch::kMeta;
  for (const bool recompute : {false, true}) {
    const Adapted adapted = Adapt(/*trained=*/true, recompute);
    MicroBatch batch = Samples({0, 1, 2});
    batch.target_rows = {1, 2, 5};
    batch.target_ids = {7, 0, 100};
    models::SiteContext context;
    context.batch = &batch;
    context.training = true;
    const Tensor h = adapted.model->Layers(adapted.model->Embed(context), context);
    const bool has_head = !models::TaskHeadOf(config_).has_dense;
    const Tensor loss = has_head ? adapted.model->LossSum(h, context) : h.square().sum();
    EXPECT_TRUE(loss.is_meta());
    if (loss.requires_grad()) torch::autograd::backward({loss}, {});
    EXPECT_TRUE(adapted.set->gradients().is_meta());
  }
}

INSTANTIATE_TEST_SUITE_P(All, DeviceContract, AllFamiliesAndMethods(), RowName);

TEST(DropoutKernelTest, CompilesWithoutAGpu) {
  for (const char* architecture : {"sm_80", "sm_90", "sm_100"}) {
    for (const bool bfloat16 : {false, true}) {
      const auto code = DropoutKernel().Compile({.bfloat16 = bfloat16}, architecture);
      ASSERT_TRUE(code.ok()) << code.status();
      EXPECT_GT(code->size(), 1000u);
    }
  }
}

}  // namespace
}  // namespace graft::adapters
