// What the tests of checkpoints share: ranks as threads with a state whose values say which
// parameter they belong to, saved and resumed over layouts. Each call makes its own ranks and, on
// every one of them, a Checkpointer of the folder; expectations report to the test that calls.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/text.h"
#include "sharding/checkpoint.h"
#include "sharding/checkpoint_folder.h"
#include "tests/sharding/fake_stage.h"
#include "tests/sharding/tiny_run.h"
#include "tests/testing/run_ranks.h"
#include "tests/testing/status_matchers.h"

namespace graft::sharding {

inline constexpr int kLayers = 4;

struct Layout {
  int data = 1;
  int pipeline = 1;
  int chunks = 1;
};

// What one rank of a test works with.
struct Rank {
  comm::Communicator& world;
  std::unique_ptr<Stage> stage;
  TrainedState state;
  std::unique_ptr<Checkpointer> checkpointer;
};

struct Settings {
  int64_t keep = 3;
  TextMap fixed = {{"optim.lr", "0x1p-10"}};
};

// Values that say which parameter they belong to, whatever the layout.
inline void Fill(const TrainedState& state, double step) {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < state.set->parameters().size(); ++i) {
    const adapters::NamedParameter& parameter = state.set->parameters()[i];
    const int number = 2 * parameter.layer + (parameter.name.back() == 's' ? 1 : 0);
    const torch::Tensor base =
        testing::FakeWeight(1, testing::kWidth, number).view({testing::kWidth}) + step;
    const auto part = [&](const torch::Tensor& flat) {
      return flat.narrow(0, state.set->offset(i), testing::kWidth);
    };
    part(state.set->values().detach()).copy_(base);
    part(state.exp_avg).copy_(base * 0.5);
    part(state.exp_avg_sq).copy_(base * base);
    part(state.averages[0].second).copy_(base.abs());
    part(state.averages[1].second).copy_(base.abs() * 3);
  }
}

inline void ExpectFilled(const TrainedState& state, double step) {
  const torch::Tensor values = state.set->values().clone(), exp_avg = state.exp_avg.clone(),
                      exp_avg_sq = state.exp_avg_sq.clone(),
                      sensitivity = state.averages[0].second.clone(),
                      uncertainty = state.averages[1].second.clone();
  Fill(state, step);
  EXPECT_TRUE(at::equal(state.set->values(), values));
  EXPECT_TRUE(at::equal(state.exp_avg, exp_avg));
  EXPECT_TRUE(at::equal(state.exp_avg_sq, exp_avg_sq));
  EXPECT_TRUE(at::equal(state.averages[0].second, sensitivity));
  EXPECT_TRUE(at::equal(state.averages[1].second, uncertainty));
  for (size_t i = 0; i < state.set->parameters().size(); ++i) {
    const torch::Tensor& value = state.set->parameters()[i].value;
    EXPECT_TRUE(value.is_leaf() && value.requires_grad());
    EXPECT_EQ(value.data_ptr<float>(),
              state.set->values().data_ptr<float>() + state.set->offset(i));
  }
}

inline void OnRanks(const Layout& layout, const std::string& folder, const Settings& settings,
                    const std::function<void(Rank&)>& body) {
  const testing::FakeMethod method(testing::LayersUpTo(kLayers));
  const Plan plan = testing::FakePlan(kLayers, method, layout.pipeline, layout.chunks);
  const comm::RankGrid grid{layout.data, layout.pipeline};
  testing::RunRanks(grid.world(), [&](comm::Communicator& world) {
    Rank rank{
        world, testing::FakeStage(plan, grid.PipelineRank(world.rank()), method), {}, nullptr};
    adapters::AdapterSet& set = rank.stage->adapters();
    rank.state = {&set, at::zeros({set.size()}), at::zeros({set.size()})};
    rank.state.averages = {{"sensitivity", at::zeros({set.size()})},
                           {"uncertainty", at::zeros({set.size()})}};
    CheckpointOptions options;
    options.folder = folder;
    options.keep = settings.keep;
    options.num_layers = kLayers;
    options.recipe = "run: {name: test}\n";
    options.fixed = settings.fixed;
    // A checkpoint of these tests says its learning rate only.
    options.fixed_of = [](const Manifest& saved, const std::string&) -> absl::StatusOr<TextMap> {
      return TextMap{{"optim.lr", HexFloat(saved.schedule.lr)}};
    };
    auto checkpointer = Checkpointer::Open(world, grid, options, rank.state);
    ASSERT_THAT(checkpointer, testing::IsOk());
    rank.checkpointer = *std::move(checkpointer);
    body(rank);
  });
}

inline Manifest At(int64_t step, const Layout& layout = {}) {
  Manifest manifest = testing::TinyManifest(step);
  manifest.schedule.lr = 0x1p-10;
  manifest.eval = EvalInfo{"loss", 3.0, 1, 0, false};
  manifest.layout.data = layout.data;
  manifest.layout.pipeline = layout.pipeline;
  return manifest;
}

inline SaveResult Save(Rank& rank, int64_t step, const Layout& layout = {}) {
  const absl::Status started = rank.checkpointer->StartSave(At(step, layout), rank.state);
  if (started.ok()) return rank.checkpointer->Wait();
  SaveResult result;
  result.status = started;
  return result;
}

inline void SaveSteps(const Layout& layout, const std::string& folder,
                      const std::vector<int64_t>& steps, const Settings& settings = {}) {
  OnRanks(layout, folder, settings, [&](Rank& rank) {
    ASSERT_THAT(rank.checkpointer->Resume("auto", rank.state), testing::IsOk());
    for (int64_t step : steps) {
      Fill(rank.state, static_cast<double>(step));
      const SaveResult saved = Save(rank, step, layout);
      ASSERT_THAT(saved.status, testing::IsOk());
      EXPECT_EQ(saved.name, StepFolderName(step));
      if (rank.world.rank() == 0) {
        EXPECT_GT(saved.bytes, 4 * 3 * 2 * testing::kWidth * kLayers);
      }
    }
  });
}

inline void ExpectResume(const Layout& layout, const std::string& folder, int64_t step,
                         const std::string& resume = "auto") {
  OnRanks(layout, folder, {}, [&](Rank& rank) {
    const auto resumed = rank.checkpointer->Resume(resume, rank.state);
    ASSERT_THAT(resumed, testing::IsOk());
    ASSERT_TRUE(resumed->has_value());
    EXPECT_EQ((*resumed)->manifest.step, step);
    EXPECT_EQ((*resumed)->manifest.eval->best, 3.0);
    ExpectFilled(rank.state, static_cast<double>(step));
  });
}

inline void ExpectRefusal(const Layout& layout, const std::string& folder,
                          const std::string& resume, const std::string& message,
                          const Settings& settings = {}) {
  OnRanks(layout, folder, settings, [&](Rank& rank) {
    const torch::Tensor before = rank.state.set->values().clone();
    EXPECT_THAT(rank.checkpointer->Resume(resume, rank.state),
                testing::FailsWith(ErrorKind::kIo, message));
    EXPECT_TRUE(at::equal(rank.state.set->values(), before));
  });
}

inline std::vector<std::string> Names(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace graft::sharding
