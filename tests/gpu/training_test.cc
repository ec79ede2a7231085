// Parts of the training side that only a GPU shows: the memory taken at the start, LoRA's shared
// products in bfloat16, and micro-batches replayed as CUDA graphs.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <tuple>

#include "adapters/lora_function.h"
#include "adapters/lora_together.h"
#include "base/status.h"
#include "sharding/step_graph.h"
#include "tests/adapters/testing.h"
#include "tests/gpu/waits.h"
#include "tests/sharding/step_graph_case.h"
#include "trainer/device.h"

namespace graft {
namespace {

const torch::Device kGpu(torch::kCUDA, 0);

TEST(ReservedMemory, IsWhatStepsAllocateFrom) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  const int64_t before = trainer::DeviceMemoryOf(kGpu).held;
  ASSERT_TRUE(trainer::ReserveDeviceBytes(kGpu, kBytes).ok());
  const trainer::DeviceMemory reserved = trainer::DeviceMemoryOf(kGpu);
  EXPECT_GE(reserved.held, before + kBytes);
  std::vector<torch::Tensor> blocks;
  for (int i = 0; i < 60; ++i)
    blocks.push_back(
        at::empty({(12 << 20) + 1000 * i}, torch::TensorOptions(kGpu).dtype(torch::kUInt8)));
  EXPECT_EQ(trainer::DeviceMemoryOf(kGpu).held, reserved.held);
}

TEST(ReservedMemory, MoreThanTheGpuHasIsARecipeError) {
  const trainer::DeviceMemory now = trainer::DeviceMemoryOf(kGpu);
  EXPECT_GT(now.total, 0);
  EXPECT_LE(now.free, now.total);
  EXPECT_EQ(KindOf(trainer::ReserveDeviceBytes(kGpu, now.total)), ErrorKind::kRecipe);
  EXPECT_EQ(KindOf(trainer::CheckFits(now.total + 1, now)), ErrorKind::kRecipe);
}

TEST(LoraTogether, GivesWhatSeparateProductsGiveInBfloat16) {
  at::manual_seed(7);
  const auto bfloat16 = torch::TensorOptions(kGpu).dtype(torch::kBFloat16);
  const auto float32 = torch::TensorOptions(kGpu).dtype(torch::kFloat32);
  const torch::Tensor x = at::randn({300, 512}, bfloat16).requires_grad_();
  std::vector<torch::Tensor> a, b;
  for (const int64_t out : {512, 128, 128}) {
    a.push_back((at::randn({16, 512}, float32) / 20).requires_grad_());
    b.push_back((at::randn({out, 16}, float32) / 4).requires_grad_());
  }
  const auto run = [&](bool together) {
    const adapters::LoraTogether shared(a, torch::kBFloat16);
    models::SiteContext context;
    torch::Tensor loss = at::zeros({}, float32);
    std::vector<torch::Tensor> results;
    for (size_t i = 0; i < a.size(); ++i) {
      torch::Tensor y = at::ones({300, b[i].size(0)}, bfloat16);
      if (together) {
        const auto t = shared.Project(i, {x, nullptr}, context);
        EXPECT_TRUE(t.has_value());
        y = adapters::AddProjected(y, *t, b[i], 2.0);
      } else {
        y = adapters::LoraEdit({x, nullptr}, y, a[i], b[i],
                               {2.0, std::nullopt, torch::kBFloat16, {}});
      }
      results.push_back(y.detach());
      loss =
          loss + (y.to(torch::kFloat32) * at::cos(at::arange(y.numel(), float32)).view_as(y)).sum();
    }
    std::vector<torch::Tensor> leaves = {x};
    leaves.insert(leaves.end(), a.begin(), a.end());
    leaves.insert(leaves.end(), b.begin(), b.end());
    for (const torch::Tensor& gradient : torch::autograd::grad({loss}, leaves))
      results.push_back(gradient);
    return results;
  };
  const auto want = run(false), got = run(true);
  for (size_t i = 0; i < want.size(); ++i)
    EXPECT_LT(adapters::RelativeError(got[i].to(torch::kFloat32), want[i].to(torch::kFloat32)),
              1e-2)
        << i;
}

class StepGraphGpuTest
    : public ::testing::TestWithParam<std::tuple<testing::GraphCase, torch::Dtype>> {};

// Every micro-batch of a layout that came before is a replay: nothing failed or was given up. What
// is allocated between steps must not be memory that a replay writes to.
TEST_P(StepGraphGpuTest, ReplaysGiveTheNumbersOfLaunches) {
  const auto& [which, dtype] = GetParam();
  testing::GraphedModel plain(which, kGpu, dtype, nullptr);
  testing::GraphedModel graphed(which, kGpu, dtype, sharding::GpuPassRecorder(kGpu));
  std::vector<torch::Tensor> others;
  for (const auto& batches : testing::GraphSteps(plain)) {
    const auto number = static_cast<int64_t>(others.size());
    for (int64_t i = 0; i < 20; ++i)
      others.push_back(at::full({1000 * (i + 1)}, number + i, at::device(kGpu)));
    EXPECT_EQ(graphed.Step(batches).losses, plain.Step(batches).losses);
    EXPECT_TRUE(at::equal(graphed.gradients(), plain.gradients()));
    EXPECT_GT(plain.gradients().abs().max().item<float>(), 0.0f);
  }
  EXPECT_EQ(graphed.graphs()->replays(), testing::kGraphReplays);
  for (size_t i = 0; i < others.size(); ++i)
    EXPECT_TRUE(others[i].eq(static_cast<double>(i)).all().item<bool>()) << i;
}

INSTANTIATE_TEST_SUITE_P(All, StepGraphGpuTest,
                         ::testing::Combine(::testing::ValuesIn(testing::GraphCases()),
                                            ::testing::Values(torch::kFloat32, torch::kBFloat16)),
                         [](const auto& row) {
                           const bool wide = std::get<1>(row.param) == torch::kFloat32;
                           return std::get<0>(row.param).title + (wide ? "_float32" : "_bfloat16");
                         });

// Nor does a recording need a launched pass before it.
TEST(StepGraphGpu, AReplayDoesNotWaitForTheGpu) {
  testing::GraphedModel model(testing::GraphCases()[0], kGpu, torch::kBFloat16, nullptr);
  sharding::MicroBatchGraphs graphs(model.stage(), sharding::GpuPassRecorder(kGpu));
  EXPECT_FALSE(graphs.Run(model.Batch({9, 9}, 0)).defined());  // seen
  ASSERT_TRUE(graphs.Run(model.Batch({9, 9}, 1)).defined());   // recorded
  for (int64_t number = 2; number < 5; ++number) {
    const models::MicroBatch batch = model.Batch({9, 9}, number);
    const testing::NoWaiting no_waiting;
    EXPECT_NO_THROW(EXPECT_TRUE(graphs.Run(batch).defined()));
  }
  EXPECT_EQ(graphs.replays(), 3);
}

// Dropout draws a mask for each step on the host's side: a recipe may not ask for both, and here
// the recording is refused by autograd's thread, which would have to copy.
TEST(StepGraphGpu, DropoutIsNotRecorded) {
  testing::GraphCase which = testing::GraphCases()[0];
  which.fields.emplace_back("dropout", "0.1");
  testing::GraphedModel plain(which, kGpu, torch::kFloat32, nullptr);
  testing::GraphedModel graphed(which, kGpu, torch::kFloat32, sharding::GpuPassRecorder(kGpu));
  for (const auto& batches : testing::GraphSteps(plain)) {
    EXPECT_EQ(graphed.Step(batches).losses, plain.Step(batches).losses);
    EXPECT_TRUE(at::equal(graphed.gradients(), plain.gradients()));
  }
  EXPECT_EQ(graphed.graphs()->replays(), 0);
}

}  // namespace
}  // namespace graft
