// Save and resume with ranks as threads, over layouts, with damaged folders.
#include "sharding/checkpoint.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "base/status.h"
#include "base/text.h"
#include "sharding/checkpoint_folder.h"
#include "tests/sharding/fake_stage.h"
#include "tests/sharding/tiny_run.h"
#include "tests/testing/fault_io.h"
#include "tests/testing/run_ranks.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::FakeMethod;
using ::graft::testing::FakePlan;
using ::graft::testing::FakeStage;
using ::graft::testing::FakeWeight;
using ::graft::testing::IsOk;
using ::graft::testing::kWidth;
using ::graft::testing::LayersUpTo;
using ::graft::testing::RunRanks;
using ::graft::testing::TempFolder;
using ::testing::ElementsAre;

constexpr int kLayers = 4;

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
void Fill(const TrainedState& state, double step) {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < state.set->parameters().size(); ++i) {
    const adapters::NamedParameter& parameter = state.set->parameters()[i];
    const int number = 2 * parameter.layer + (parameter.name.back() == 's' ? 1 : 0);
    const torch::Tensor base = FakeWeight(1, kWidth, number).view({kWidth}) + step;
    const auto part = [&](const torch::Tensor& flat) {
      return flat.narrow(0, state.set->offset(i), kWidth);
    };
    part(state.set->values().detach()).copy_(base);
    part(state.exp_avg).copy_(base * 0.5);
    part(state.exp_avg_sq).copy_(base * base);
    part(state.averages[0].second).copy_(base.abs());
    part(state.averages[1].second).copy_(base.abs() * 3);
  }
}

void ExpectFilled(const TrainedState& state, double step) {
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

void OnRanks(const Layout& layout, const std::string& folder, const Settings& settings,
             const std::function<void(Rank&)>& body) {
  const FakeMethod method(LayersUpTo(kLayers));
  const Plan plan = FakePlan(kLayers, method, layout.pipeline, layout.chunks);
  const comm::RankGrid grid{layout.data, layout.pipeline};
  RunRanks(grid.world(), [&](comm::Communicator& world) {
    Rank rank{world, FakeStage(plan, grid.PipelineRank(world.rank()), method), {}, nullptr};
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
    ASSERT_THAT(checkpointer, IsOk());
    rank.checkpointer = *std::move(checkpointer);
    body(rank);
  });
}

Manifest At(int64_t step, const Layout& layout = {}) {
  Manifest manifest = testing::TinyManifest(step);
  manifest.schedule.lr = 0x1p-10;
  manifest.eval = EvalInfo{"loss", 3.0, 1, 0, false};
  manifest.layout.data = layout.data;
  manifest.layout.pipeline = layout.pipeline;
  return manifest;
}

SaveResult Save(Rank& rank, int64_t step, const Layout& layout = {}) {
  const absl::Status started = rank.checkpointer->StartSave(At(step, layout), rank.state);
  if (started.ok()) return rank.checkpointer->Wait();
  SaveResult result;
  result.status = started;
  return result;
}

void SaveSteps(const Layout& layout, const std::string& folder, const std::vector<int64_t>& steps,
               const Settings& settings = {}) {
  OnRanks(layout, folder, settings, [&](Rank& rank) {
    ASSERT_THAT(rank.checkpointer->Resume("auto", rank.state), IsOk());
    for (int64_t step : steps) {
      Fill(rank.state, static_cast<double>(step));
      const SaveResult saved = Save(rank, step, layout);
      ASSERT_THAT(saved.status, IsOk());
      EXPECT_EQ(saved.name, StepFolderName(step));
      if (rank.world.rank() == 0) {
        EXPECT_GT(saved.bytes, 4 * 3 * 2 * kWidth * kLayers);
      }
    }
  });
}

void ExpectResume(const Layout& layout, const std::string& folder, int64_t step,
                  const std::string& resume = "auto") {
  OnRanks(layout, folder, {}, [&](Rank& rank) {
    const auto resumed = rank.checkpointer->Resume(resume, rank.state);
    ASSERT_THAT(resumed, IsOk());
    ASSERT_TRUE(resumed->has_value());
    EXPECT_EQ((*resumed)->manifest.step, step);
    EXPECT_EQ((*resumed)->manifest.eval->best, 3.0);
    ExpectFilled(rank.state, static_cast<double>(step));
  });
}

void ExpectRefusal(const Layout& layout, const std::string& folder, const std::string& resume,
                   const std::string& message, const Settings& settings = {}) {
  OnRanks(layout, folder, settings, [&](Rank& rank) {
    const torch::Tensor before = rank.state.set->values().clone();
    EXPECT_THAT(rank.checkpointer->Resume(resume, rank.state), FailsWith(ErrorKind::kIo, message));
    EXPECT_TRUE(at::equal(rank.state.set->values(), before));
  });
}

std::vector<std::string> Names(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

void FlipByte(const std::string& path, int64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  ASSERT_TRUE(file.good()) << path;
  file.seekg(at);
  const char byte = static_cast<char>(file.get() ^ 0x10);
  file.seekp(at);
  file.put(byte);
}

const std::vector<Layout> kLayouts = {{1, 1, 1}, {2, 1, 1}, {1, 2, 1}, {2, 2, 1},
                                      {4, 1, 1}, {1, 4, 1}, {3, 1, 1}, {1, 2, 2}};

TEST(Checkpoint, EveryLayoutLoadsWhatAnyOtherSaved) {
  for (const Layout& writer : kLayouts) {
    const TempFolder temp;
    SaveSteps(writer, temp.path(), {7});
    for (const Layout& reader : kLayouts) ExpectResume(reader, temp.path(), 7);
  }
}

TEST(Checkpoint, WhatIsLoadedIsSavedAgainWithTheSameBytesOnEveryPairOfLayouts) {  // K8
  for (const Layout& writer : kLayouts) {
    const TempFolder temp;
    SaveSteps(writer, temp.path(), {7});
    for (const Layout& reader : kLayouts) {
      OnRanks(reader, temp.path(), {}, [&](Rank& rank) {
        ASSERT_THAT(rank.checkpointer->Resume(temp.Path("step-00000007"), rank.state), IsOk());
        ASSERT_THAT(Save(rank, 8, reader).status, IsOk());
      });
      for (const std::string& name : Names(temp.Path("step-00000008/shards"))) {
        EXPECT_EQ(temp.Read("step-00000008/shards/" + name),
                  temp.Read("step-00000007/shards/" + name));
      }
      std::filesystem::remove_all(temp.Path("step-00000008"));
    }
  }
}

TEST(Checkpoint, ShardsHaveTheSameBytesUnderEveryLayout) {
  const TempFolder reference;
  SaveSteps({1, 1, 1}, reference.path(), {7});
  for (const Layout& layout : kLayouts) {
    const TempFolder temp;
    SaveSteps(layout, temp.path(), {7});
    EXPECT_THAT(Names(temp.Path("step-00000007/shards")),
                ElementsAre("layer-0000.safetensors", "layer-0001.safetensors",
                            "layer-0002.safetensors", "layer-0003.safetensors"));
    for (const std::string& name : Names(temp.Path("step-00000007/shards"))) {
      EXPECT_EQ(temp.Read("step-00000007/shards/" + name),
                reference.Read("step-00000007/shards/" + name));
    }
  }
}

TEST(Checkpoint, KeepsTheNewestAndCleansUp) {
  const TempFolder temp;
  temp.Write("step-00000099.tmp-0001/shards/x", "left behind by a crash");
  temp.Write(".trash-step-00000001/x", "");
  SaveSteps({1, 2, 1}, temp.path(), {10, 20, 30, 40}, {.keep = 2});
  EXPECT_THAT(Names(temp.path()),
              ElementsAre("LATEST", "starts.jsonl", "step-00000030", "step-00000040"));
  EXPECT_EQ(temp.Read("LATEST"), "step-00000040\n");
  EXPECT_EQ(temp.Read("step-00000040/recipe.yaml"), "run: {name: test}\n");
}

TEST(Checkpoint, AValidFolderOfTheStepStays) {
  const TempFolder temp;
  const auto save = [&](double values, const Layout& layout) {
    SaveResult result;
    OnRanks(layout, temp.path(), {}, [&](Rank& rank) {
      ASSERT_THAT(rank.checkpointer->Resume("auto", rank.state), IsOk());
      Fill(rank.state, values);
      const SaveResult mine = Save(rank, 5, layout);
      if (rank.world.rank() == 0) result = mine;
    });
    return result.status;
  };
  ASSERT_THAT(save(5, {1, 1, 1}), IsOk());
  const std::string before = temp.Read("step-00000005/manifest.json");
  EXPECT_THAT(save(5, {1, 1, 1}), IsOk());
  EXPECT_EQ(temp.Read("step-00000005/manifest.json"), before);
  // One run that comes to a step twice on one layout must come with the same numbers.
  EXPECT_THAT(save(6, {1, 1, 1}), FailsWith(ErrorKind::kBug, "reached twice"));
  EXPECT_THAT(save(6, {1, 2, 1}), IsOk());
  EXPECT_EQ(temp.Read("step-00000005/manifest.json"), before);
}

TEST(Checkpoint, DamageFallsBackToTheNextOlderOne) {
  const std::vector<std::function<void(const TempFolder&, const std::string&)>> damages = {
      [](const TempFolder& temp, const std::string& folder) {
        FlipByte(temp.Path(folder + "/shards/layer-0002.safetensors"), 500);
      },
      [](const TempFolder& temp, const std::string& folder) {
        FlipByte(temp.Path(folder + "/manifest.json"), 40);
      },
      [](const TempFolder& temp, const std::string& folder) {
        std::filesystem::remove(temp.Path(folder + "/manifest.json"));
      },
      [](const TempFolder& temp, const std::string& folder) {
        std::filesystem::remove(temp.Path(folder + "/shards/layer-0000.safetensors"));
      },
      [](const TempFolder& temp, const std::string& folder) {
        std::filesystem::resize_file(temp.Path(folder + "/shards/layer-0003.safetensors"), 100);
      }};
  for (const auto& damage : damages) {
    const TempFolder temp;
    SaveSteps({1, 2, 1}, temp.path(), {10, 20});
    damage(temp, "step-00000020");
    ExpectResume({2, 2, 1}, temp.path(), 10);
    EXPECT_TRUE(std::filesystem::exists(temp.Path("step-00000020.bad-1")));
    EXPECT_FALSE(std::filesystem::exists(temp.Path("step-00000020")));
  }
}

// A folder whose hashes are right but whose content does not fit is no state to go on from.
TEST(Checkpoint, ContentThatDoesNotFitIsDamageToo) {
  const TempFolder temp;
  SaveSteps({1, 1, 1}, temp.path(), {10});
  OnRanks({1, 1, 1}, temp.path(), {}, [](Rank& rank) {
    ASSERT_THAT(rank.checkpointer->Resume("auto", rank.state), IsOk());
    Fill(rank.state, 20);
    rank.state.exp_avg_sq[5] = -1.0;
    ASSERT_THAT(Save(rank, 20).status, IsOk());
    Fill(rank.state, 30);
    rank.state.exp_avg[5] = std::numeric_limits<float>::quiet_NaN();
    ASSERT_THAT(Save(rank, 30).status, IsOk());
  });
  ExpectResume({1, 4, 1}, temp.path(), 10);
  EXPECT_TRUE(std::filesystem::exists(temp.Path("step-00000020.bad-1")));
  EXPECT_TRUE(std::filesystem::exists(temp.Path("step-00000030.bad-1")));
}

TEST(Checkpoint, NeverBackToStepZeroInSilence) {
  const TempFolder temp;
  SaveSteps({1, 1, 1}, temp.path(), {10});
  FlipByte(temp.Path("step-00000010/shards/layer-0000.safetensors"), 400);
  ExpectRefusal({1, 2, 1}, temp.path(), "auto", "no valid checkpoint is left");
  ExpectRefusal({1, 2, 1}, temp.path(), "auto", "step-00000010.bad-1");
}

TEST(Checkpoint, EmptyFolderBeginsAtStepZero) {
  for (const char* resume : {"auto", "never"}) {
    const TempFolder temp;
    OnRanks({2, 2, 1}, temp.Path("new/checkpoints"), {}, [&](Rank& rank) {
      const auto resumed = rank.checkpointer->Resume(resume, rank.state);
      ASSERT_THAT(resumed, IsOk());
      EXPECT_FALSE(resumed->has_value());
    });
  }
}

TEST(Checkpoint, NeverRefusesAFolderThatHoldsOne) {
  const TempFolder temp;
  SaveSteps({1, 1, 1}, temp.path(), {10});
  ExpectRefusal({1, 2, 1}, temp.path(), "never", "holds step-00000010");
}

TEST(Checkpoint, OtherFixedValuesAreRefusedWithoutFallback) {
  const TempFolder temp;
  SaveSteps({1, 1, 1}, temp.path(), {10});
  Settings settings;
  settings.fixed = {{"optim.lr", "0x1p-11"}};
  ExpectRefusal({1, 2, 1}, temp.path(), "auto",
                "optim.lr is `0x1p-10` in the checkpoint and `0x1p-11` now", settings);
  EXPECT_TRUE(std::filesystem::exists(temp.Path("step-00000010")));
}

TEST(Checkpoint, ANamedFolderHasNoFallback) {
  const TempFolder temp, other;
  SaveSteps({1, 1, 1}, temp.path(), {10, 20});
  const std::string copy = other.Path("copied");
  std::filesystem::copy(temp.Path("step-00000010"), copy, std::filesystem::copy_options::recursive);
  ExpectResume({1, 2, 1}, temp.path(), 10, copy);
  FlipByte(copy + "/shards/layer-0003.safetensors", 333);
  ExpectRefusal({1, 2, 1}, temp.path(), copy, "layer-0003");
  EXPECT_TRUE(std::filesystem::exists(copy));
  ExpectRefusal({1, 1, 1}, temp.path(), other.Path("absent"), "checkpoint.resume");
}

TEST(Checkpoint, StartsAreCounted) {
  const TempFolder temp;
  SaveSteps({1, 1, 1}, temp.path(), {10});
  ExpectResume({1, 2, 1}, temp.path(), 10);
  EXPECT_EQ(temp.Read("starts.jsonl"),
            "{\"start\":1,\"from_step\":0,\"committed_step\":10}\n"
            "{\"start\":2,\"from_step\":10,\"committed_step\":null}\n");
  const Manifest first = ValueOrThrow(ValidateCheckpoint(temp.Path("step-00000010")));
  OnRanks({2, 1, 1}, temp.path(), {}, [&](Rank& rank) {
    ASSERT_THAT(rank.checkpointer->Resume("auto", rank.state), IsOk());
    ASSERT_THAT(Save(rank, 20).status, IsOk());
  });
  const Manifest later = ValueOrThrow(ValidateCheckpoint(temp.Path("step-00000020")));
  EXPECT_EQ(later.start, 3);
  EXPECT_EQ(later.run_id, first.run_id);
}

// Training goes on while a save is written: the state of its step is what it holds, and it moves on
// only by the votes of all ranks.
TEST(Checkpoint, ASaveRunsBesideTheTraining) {
  const TempFolder temp;
  OnRanks({2, 2, 1}, temp.path(), {}, [&](Rank& rank) {
    ASSERT_THAT(rank.checkpointer->Resume("auto", rank.state), IsOk());
    Fill(rank.state, 7);
    ASSERT_THAT(rank.checkpointer->StartSave(At(7), rank.state), IsOk());
    EXPECT_TRUE(rank.checkpointer->saving());
    EXPECT_FALSE(rank.checkpointer->Advance({}).has_value());
    int boundaries = 0;
    for (std::optional<SaveResult> result; !result.has_value(); ++boundaries) {
      Fill(rank.state, 100 + boundaries);
      double votes[2] = {rank.checkpointer->CastVote().done, rank.checkpointer->CastVote().failed};
      rank.world.AllReduce({votes, 2, comm::DType::kFloat64, -1}, comm::ReduceOp::kSum);
      result = rank.checkpointer->Advance({votes[0], votes[1]});
      if (!result.has_value()) continue;
      EXPECT_THAT(result->status, IsOk());
      EXPECT_GT(result->seconds, result->stalled_seconds);
    }
    EXPECT_GE(boundaries, 2);
    EXPECT_FALSE(rank.checkpointer->saving());
  });
  ExpectResume({1, 1, 1}, temp.path(), 7);
}

TEST(Checkpoint, ACheckpointOnTheWayIsFinishedByWaiting) {
  const TempFolder temp;
  OnRanks({2, 1, 1}, temp.path(), {}, [&](Rank& rank) {
    ASSERT_THAT(rank.checkpointer->Resume("auto", rank.state), IsOk());
    Fill(rank.state, 7);
    ASSERT_THAT(rank.checkpointer->StartSave(At(7), rank.state), IsOk());
    // Left under way: a checkpointer that goes joins its writer and commits nothing.
  });
  EXPECT_FALSE(std::filesystem::exists(temp.Path("step-00000007")));
  SaveSteps({1, 1, 1}, temp.path(), {8});
  EXPECT_FALSE(std::filesystem::exists(temp.Path("step-00000007.tmp-0001")));
}

TEST(Checkpoint, ReplicasThatDifferAreABugAndAreNotSaved) {
  const TempFolder temp;
  OnRanks({3, 2, 1}, temp.path(), {}, [&](Rank& rank) {
    ASSERT_THAT(rank.checkpointer->Resume("auto", rank.state), IsOk());
    Fill(rank.state, 7);
    EXPECT_THAT(rank.checkpointer->CheckReplicas(rank.state), IsOk());
    if (rank.world.rank() == 3) {  // data rank 1, stage 1
      at::NoGradGuard no_grad;
      rank.state.set->values().detach()[3] += 1e-6;
    }
    EXPECT_THAT(rank.checkpointer->CheckReplicas(rank.state),
                FailsWith(ErrorKind::kBug, "the replicas of stage 1"));
    EXPECT_THAT(rank.checkpointer->StartSave(At(7), rank.state),
                FailsWith(ErrorKind::kBug, "nothing was saved"));
    EXPECT_FALSE(rank.checkpointer->saving());
  });
}

TEST(Checkpoint, TheBestAndTheOneResumedFromAreSpared) {
  const TempFolder temp;
  SaveSteps({1, 1, 1}, temp.path(), {10, 20}, {.keep = 2});
  OnRanks({1, 1, 1}, temp.path(), {.keep = 1}, [&](Rank& rank) {
    ASSERT_THAT(rank.checkpointer->Resume("auto", rank.state), IsOk());
    ASSERT_THAT(Save(rank, 30).status, IsOk());
    EXPECT_TRUE(std::filesystem::exists(temp.Path("step-00000020")));
    rank.checkpointer->SpareBest(30);
    ASSERT_THAT(Save(rank, 40).status, IsOk());
    EXPECT_FALSE(std::filesystem::exists(temp.Path("step-00000020")));
    ASSERT_THAT(Save(rank, 50).status, IsOk());
  });
  EXPECT_THAT(Names(temp.path()),
              ElementsAre("LATEST", "starts.jsonl", "step-00000030", "step-00000050"));
}

// One rank's disk is full: all abandon the save, the older checkpoint stays, the next save works.
TEST(Checkpoint, AFailureOnOneRankIsAFailureForAll) {
  const TempFolder temp;
  SaveSteps({2, 2, 1}, temp.path(), {10});
  for (const int at : {2, 5, 9, 14, 25, 40}) {
    OnRanks({2, 2, 1}, temp.path(), {}, [&](Rank& rank) {
      ASSERT_THAT(rank.checkpointer->Resume("auto", rank.state), IsOk());
      static std::unique_ptr<testing::FaultIo> io;
      rank.world.Barrier();
      if (rank.world.rank() == 0) {
        io = std::make_unique<testing::FaultIo>(testing::FaultIo::Fault::kError, at, ENOSPC);
        SetIoCalls(io.get());
      }
      rank.world.Barrier();
      const SaveResult saved = Save(rank, 20);
      rank.world.Barrier();
      if (rank.world.rank() == 0) SetIoCalls(nullptr);
      rank.world.Barrier();
      if (!saved.status.ok()) {
        EXPECT_THAT(saved.status, FailsWith(ErrorKind::kIo, "No space left"));
      }
      EXPECT_THAT(ValidateCheckpoint(temp.Path("step-00000010")), IsOk());
      EXPECT_THAT(Save(rank, 20).status, IsOk());
    });
    EXPECT_THAT(ValidateCheckpoint(temp.Path("step-00000020")), IsOk());
    std::filesystem::remove_all(temp.Path("step-00000020"));
  }
}

TEST(Checkpoint, AFailedSaveHarmsNothing) {
  const TempFolder temp;
  SaveSteps({1, 1, 1}, temp.path(), {10});
  OnRanks({1, 2, 1}, temp.path(), {}, [&](Rank& rank) {
    ASSERT_THAT(rank.checkpointer->Resume("auto", rank.state), IsOk());
    // The folder goes away under a running job.
    if (rank.world.rank() == 0) {
      std::filesystem::rename(temp.Path("step-00000010"), temp.path() + ".saved");
      std::filesystem::remove_all(temp.path());
      std::ofstream(temp.path()) << "a file in its place";
    }
    rank.world.Barrier();
    EXPECT_THAT(Save(rank, 20).status, FailsWith(ErrorKind::kIo, ""));
    EXPECT_FALSE(rank.checkpointer->saving());
  });
  EXPECT_THAT(ValidateCheckpoint(temp.path() + ".saved"), IsOk());
  std::filesystem::remove_all(temp.path() + ".saved");
}

}  // namespace
}  // namespace graft::sharding
