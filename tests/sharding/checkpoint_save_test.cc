// A save beside the training: how it moves on, what it refuses, which folders it spares, and that a
// failure on one rank is one on all and harms nothing.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <optional>

#include "base/status.h"
#include "sharding/checkpoint.h"
#include "sharding/checkpoint_folder.h"
#include "tests/sharding/checkpoint_ranks.h"
#include "tests/testing/fault_io.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::TempFolder;
using ::testing::ElementsAre;

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
