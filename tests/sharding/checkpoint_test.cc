// Save and resume with ranks as threads, over layouts, with damaged folders.
#include "sharding/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>

#include "base/status.h"
#include "sharding/checkpoint_folder.h"
#include "tests/sharding/checkpoint_ranks.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::TempFolder;
using ::testing::ElementsAre;

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

}  // namespace
}  // namespace graft::sharding
