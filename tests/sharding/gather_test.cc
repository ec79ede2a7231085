#include "sharding/gather.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/sharding/fake_stage.h"
#include "tests/testing/run_ranks.h"
#include "tests/testing/status_matchers.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::FakeMethod;
using ::graft::testing::FakePlan;
using ::graft::testing::FakeStage;
using ::graft::testing::IsOk;
using ::graft::testing::LayersUpTo;
using ::graft::testing::RunRanks;

constexpr int kLayers = 4;

NamedTensors Expected(const FakeMethod& method) {
  const Plan plan = FakePlan(kLayers, method, 1);
  auto stage = FakeStage(plan, 0, method);
  NamedTensors tensors;
  for (const adapters::NamedParameter& parameter : stage->adapters().parameters()) {
    tensors.emplace_back(parameter.name, parameter.value.detach().clone());
  }
  return tensors;
}

TEST(Gather, CollectsAllStagesInLayerOrder) {
  for (const std::vector<int>& trained :
       {LayersUpTo(kLayers), std::vector<int>{2}, std::vector<int>{}}) {
    const FakeMethod method(trained);
    const NamedTensors expected = Expected(method);
    for (const auto& [stages, chunks] : {std::pair{1, 1}, {2, 1}, {4, 1}, {2, 2}, {1, 2}}) {
      const Plan plan = FakePlan(kLayers, method, stages, chunks);
      RunRanks(stages, [&](comm::Communicator& pipeline) {
        auto stage = FakeStage(plan, pipeline.rank(), method);
        const NamedTensors found = GatherParameters(pipeline, stage->adapters());
        if (pipeline.rank() > 0) {
          EXPECT_TRUE(found.empty());
          return;
        }
        ASSERT_EQ(found.size(), expected.size());
        for (size_t i = 0; i < found.size(); ++i) {
          EXPECT_EQ(found[i].first, expected[i].first);
          EXPECT_TRUE(at::equal(found[i].second, expected[i].second)) << found[i].first;
        }
      });
    }
  }
}

TEST(Gather, ScatterGivesEachStageItsOwn) {
  const FakeMethod method(LayersUpTo(kLayers));
  NamedTensors tensors;
  for (const auto& [name, tensor] : Expected(method)) tensors.emplace_back(name, tensor * 3);
  const Plan plan = FakePlan(kLayers, method, 2, 2);
  RunRanks(2, [&](comm::Communicator& pipeline) {
    auto stage = FakeStage(plan, pipeline.rank(), method);
    EXPECT_THAT(ScatterParameters(pipeline, pipeline.rank() == 0 ? tensors : NamedTensors(),
                                  stage->adapters()),
                IsOk());
    const NamedTensors found = GatherParameters(pipeline, stage->adapters());
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT_TRUE(at::equal(found[i].second, tensors[i].second)) << found[i].first;
    }
  });
}

TEST(Gather, AMissingTensorIsTheSameErrorEverywhere) {
  const FakeMethod method(LayersUpTo(kLayers));
  NamedTensors tensors = Expected(method);
  const std::string missing = tensors.back().first;
  tensors.pop_back();
  const Plan plan = FakePlan(kLayers, method, 2);
  RunRanks(2, [&](comm::Communicator& pipeline) {
    auto stage = FakeStage(plan, pipeline.rank(), method);
    EXPECT_THAT(ScatterParameters(pipeline, tensors, stage->adapters()),
                FailsWith(ErrorKind::kInput, missing));
  });
}

}  // namespace
}  // namespace graft::sharding
