// The pipeline over device groups, on hosts that every operation stops until their GPU is idle: as
// in a step in which each operation loads a kernel or allocates memory for the first time.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "sharding/executor.h"
#include "sharding/frozen_shards.h"
#include "sharding/gradient_reduction.h"
#include "tests/sharding/fake_gpu.h"
#include "tests/sharding/fake_stage.h"
#include "tests/testing/run_ranks.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FakeDeviceGroup;
using ::graft::testing::FakeGpus;
using ::graft::testing::FakeMethod;
using ::graft::testing::FakeMicroBatches;
using ::graft::testing::FakePlan;
using ::graft::testing::FakeStage;
using ::graft::testing::LayersUpTo;
using ::graft::testing::RunRanks;

constexpr int kLayers = 8;

// Stalls in each layer's forward and backward pass.
class StallingLayer : public models::SiteHook {
 public:
  explicit StallingLayer(std::function<void()> stall) : stall_(std::move(stall)) {}
  torch::Tensor EditOutput(const models::SiteInput&, torch::Tensor y,
                           models::SiteContext&) override {
    stall_();
    if (y.requires_grad() && !y.is_leaf())
      y.register_hook([stall = stall_](const torch::Tensor&) { stall(); });
    return y;
  }

 private:
  const std::function<void()> stall_;
};

struct Layout {
  ScheduleKind schedule;
  int stages, chunks, micro_batches;
};

// On every layer of the stage, once the ranks compute.
void StallInEveryLayer(const Plan& plan, Stage& stage, const std::function<void()>& stall) {
  const auto hook = std::make_shared<StallingLayer>(stall);
  for (int chunk = 0; chunk < plan.chunks; ++chunk) {
    const StageChunk& part = plan.Part(stage.index(), chunk);
    for (int layer = part.first_layer; layer < part.end_layer(); ++layer)
      stage.backbone(chunk).sites().Add({layer, models::Role::kLayerOut}, hook);
  }
}

// Losses of two steps on the last stage.
std::vector<double> StalledRun(const Layout& layout, bool announces,
                               std::chrono::milliseconds limit) {
  const FakeMethod method(LayersUpTo(kLayers));
  const Plan plan = FakePlan(kLayers, method, layout.stages, layout.chunks);
  FakeGpus gpus;
  std::vector<double> losses;
  RunRanks(layout.stages, [&](comm::Communicator& host) {
    FakeDeviceGroup pipeline(host, gpus, announces);
    auto stage = FakeStage(plan, host.rank(), method);
    Executor executor(plan, *stage, pipeline, {.schedule = layout.schedule});
    executor.Connect();
    StallInEveryLayer(plan, *stage, [&] { gpus.Stall(host.rank(), limit); });
    const auto batches = FakeMicroBatches(layout.micro_batches);
    executor.TrainStep(batches);
    const StepResult result = executor.TrainStep(batches);
    if (host.rank() + 1 == layout.stages) losses = result.losses;
  });
  return losses;
}

std::string Name(const Layout& layout) {
  return std::string(ScheduleName(layout.schedule)) + " p" + std::to_string(layout.stages) + " v" +
         std::to_string(layout.chunks) + " m" + std::to_string(layout.micro_batches);
}

TEST(StalledHosts, NeverWaitForEachOther) {
  std::vector<Layout> layouts;
  for (const int stages : {2, 3, 4}) {
    for (const int m : {1, 2, 4, 5, 8}) {
      layouts.push_back({ScheduleKind::kGPipe, stages, 1, m});
      layouts.push_back({ScheduleKind::k1F1B, stages, 1, m});
      if (m % stages == 0 && stages != 3)
        layouts.push_back({ScheduleKind::kInterleaved, stages, 2, m});
    }
  }
  for (const Layout& layout : layouts) {
    SCOPED_TRACE(Name(layout));
    const Layout whole{ScheduleKind::k1F1B, 1, 1, layout.micro_batches};
    EXPECT_EQ(StalledRun(layout, /*announces=*/true, std::chrono::seconds(20)),
              StalledRun(whole, /*announces=*/true, std::chrono::seconds(20)));
  }
}

// Two replicas of a pipeline whose gradients are summed while their last backward passes go on.
TEST(StalledHosts, WithReductionsUnderWayNeverWaitForEachOther) {
  constexpr int kReplicas = 2;
  const FakeMethod method(LayersUpTo(kLayers));
  for (const Layout& layout :
       {Layout{ScheduleKind::k1F1B, 1, 1, 3}, Layout{ScheduleKind::k1F1B, 2, 1, 4},
        Layout{ScheduleKind::kGPipe, 2, 1, 2}, Layout{ScheduleKind::kInterleaved, 2, 2, 4}}) {
    SCOPED_TRACE(Name(layout));
    const Plan plan = FakePlan(kLayers, method, layout.stages, layout.chunks);
    FakeGpus gpus;
    std::atomic<size_t> started_inside = 0;
    RunRanks(kReplicas * layout.stages, [&](comm::Communicator& world) {
      const int gpu = world.rank();
      const int stage_index = gpu % layout.stages, replica = gpu / layout.stages;
      const auto pipeline_host = world.Split(replica, stage_index, "pipeline");
      const auto data_host = world.Split(stage_index, replica, "data");
      FakeDeviceGroup pipeline(*pipeline_host, gpus, /*announces=*/true,
                               layout.stages == 1
                                   ? std::vector<int>{gpu}
                                   : std::vector<int>{gpu - stage_index, gpu - stage_index + 1});
      FakeDeviceGroup data(*data_host, gpus, /*announces=*/false,
                           {stage_index, stage_index + layout.stages});
      auto stage = FakeStage(plan, stage_index, method);
      Executor executor(plan, *stage, pipeline, {.schedule = layout.schedule});
      executor.Connect();
      StallInEveryLayer(plan, *stage, [&] { gpus.Stall(gpu, std::chrono::seconds(20)); });
      GradientReduction reduction(stage->adapters(), kLayers, data, {}, /*piece_bytes=*/1);
      const auto batches = FakeMicroBatches(layout.micro_batches);
      for (int step = 0; step < 2; ++step) {
        stage->adapters().ZeroGradients();
        executor.TrainStep(batches, [&](int layer) { reduction.LayersDone(layer); });
        started_inside += reduction.started();
        reduction.Finish();
      }
      const torch::Tensor summed = stage->adapters().gradients().clone();
      stage->adapters().ZeroGradients();
      executor.TrainStep(batches);
      EXPECT_TRUE(at::equal(summed, kReplicas * stage->adapters().gradients()));
    });
    EXPECT_GT(started_inside, 0u);
  }
}

// What the announcements are for: with receives handed over ahead of their sends, the first stage
// stalls in a backward pass on a gradient that the last one makes after a forward pass, in which it
// stalls on a hidden state of the first.
TEST(StalledHosts, WaitForEachOtherWithReceivesHandedOverAhead) {
  EXPECT_THROW(StalledRun({ScheduleKind::k1F1B, 2, 1, 4}, /*announces=*/false,
                          std::chrono::milliseconds(300)),
               StatusError);
}

// Replicas start the same transfers at the same time; what each has started may wait for the others
// only until they are as far.
TEST(StalledHosts, OfReplicasThatShareWeightsNeverWaitForEachOther) {
  for (const int ranks : {2, 3}) {
    FakeGpus gpus;
    RunRanks(ranks, [&](comm::Communicator& host) {
      FakeDeviceGroup group(host, gpus, /*announces=*/false);
      FrozenShards shards(group, torch::kCPU);
      for (int layer = 0; layer < 4; ++layer)
        shards.Keep(layer, at::full({1000}, layer, torch::kUInt8));
      shards.Connect();
      for (int step = 0; step < 3; ++step) {
        for (const int layer : {0, 1, 2, 3, 3, 2, 1, 0}) {
          EXPECT_EQ(shards.Use(layer).narrow(0, 0, 1000).min().item<int>(), layer);
          gpus.Stall(host.rank(), std::chrono::seconds(20));
        }
        shards.Settle();
      }
    });
  }
}

// The announcements are the order check of device groups.
TEST(TransferQueue, AnotherTransferThanExpectedIsABug) {
  for (const bool other_tag : {true, false}) {
    FakeGpus gpus;
    std::atomic<bool> found = false;
    RunRanks(2, [&](comm::Communicator& host) {
      FakeDeviceGroup group(host, gpus, /*announces=*/true);
      std::vector<float> data(8);
      const comm::Buffer all{data.data(), 8, comm::DType::kFloat32, -1};
      const comm::Buffer half{data.data(), 4, comm::DType::kFloat32, -1};
      if (host.rank() == 0) {
        group.Send(all, 1, 5);
        const auto late = group.StartSend(other_tag ? all : half, 1, other_tag ? 6 : 5);
        host.Barrier();
        return;
      }
      group.Recv(all, 0, 5);
      try {
        group.Recv(all, 0, 5);
      } catch (const StatusError& error) {
        found = KindOf(error.status()) == ErrorKind::kBug;
        EXPECT_NE(std::string(error.what()).find(other_tag ? "tag 6" : "bytes 16"),
                  std::string::npos)
            << error.what();
      }
      host.Barrier();
    });
    EXPECT_TRUE(found) << other_tag;
  }
}

}  // namespace
}  // namespace graft::sharding
