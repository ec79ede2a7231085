#include "sharding/frozen_shards.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "base/status.h"
#include "tests/testing/run_ranks.h"

namespace graft::sharding {
namespace {

using ::graft::testing::RunRanks;

torch::Tensor LayerBytes(int layer) {
  return at::arange(1000 + 700 * layer).mul(layer + 3).remainder(251).to(torch::kUInt8);
}

// Layers 2 .. 2 + count - 1.
void KeepLayers(FrozenShards& shards, int count) {
  for (int layer = 2; layer < 2 + count; ++layer) shards.Keep(layer, LayerBytes(layer));
}

TEST(FrozenShards, EveryLayerComesBackWhole) {
  // Passes of a step: forward and backward, forward alone, jumps, the same layer again.
  const std::vector<int> uses = {2, 2, 3, 4, 5, 5, 4, 3, 2, 2, 3, 4, 5, 2, 3, 4, 5, 5, 2, 4, 3, 5};
  for (const int ranks : {1, 2, 3}) {
    RunRanks(ranks, [&](comm::Communicator& group) {
      FrozenShards shards(group, torch::kCPU);
      KeepLayers(shards, 4);
      for (int round = 0; round < 3; ++round) {
        for (const int layer : uses) {
          const torch::Tensor want = LayerBytes(layer);
          EXPECT_TRUE(at::equal(shards.Use(layer).narrow(0, 0, want.numel()), want)) << layer;
        }
        shards.Settle();
      }
    });
  }
}

TEST(FrozenShards, ARankKeepsItsShareAndTwoLayers) {
  RunRanks(3, [](comm::Communicator& group) {
    FrozenShards shards(group, torch::kCPU);
    const int64_t size = LayerBytes(2).numel();
    const int64_t share = shards.Keep(2, LayerBytes(2));
    EXPECT_GE(3 * share, size);
    EXPECT_LT(3 * share, size + 3 * 64);
    EXPECT_EQ(shards.shards().size(), 1u);
    EXPECT_EQ(shards.shards()[0].second.numel(), share);
    EXPECT_EQ(shards.gathered_bytes(), 3 * share);
    shards.Keep(3, LayerBytes(3));
    EXPECT_EQ(shards.gathered_bytes(), 2 * 3 * shards.shards()[1].second.numel());
  });
}

TEST(FrozenShards, ASteadyStepGathersWhatTheTurnsLeave) {
  RunRanks(2, [](comm::Communicator& group) {
    FrozenShards shards(group, torch::kCPU);
    constexpr int kLayers = 5;
    KeepLayers(shards, kLayers);
    int64_t step_bytes = 0;
    for (int step = 0; step < 3; ++step) {
      const int64_t before = shards.received_bytes();
      for (int layer = 2; layer < 2 + kLayers; ++layer) shards.Use(layer);
      for (int layer = 2 + kLayers - 1; layer >= 2; --layer) shards.Use(layer);
      shards.Settle();
      step_bytes = shards.received_bytes() - before;
    }
    // Of the 2 L uses, two at each turn find their layer whole.
    int64_t expected = 0;
    const auto kept = shards.shards();
    for (size_t i = 2; i < kept.size(); ++i) expected += kept[i].second.numel();      // forward
    for (size_t i = 0; i + 2 < kept.size(); ++i) expected += kept[i].second.numel();  // backward
    EXPECT_EQ(step_bytes, expected);
  });
}

TEST(FrozenShards, ALostReplicaIsAPeerError) {
  EXPECT_THROW(RunRanks(2,
                        [](comm::Communicator& group) {
                          group.set_timeout(absl::Milliseconds(200));
                          FrozenShards shards(group, torch::kCPU);
                          KeepLayers(shards, 2);
                          if (group.rank() == 1) return;
                          shards.Use(2);
                        }),
               StatusError);
}

}  // namespace
}  // namespace graft::sharding
