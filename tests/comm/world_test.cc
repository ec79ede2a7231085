#include "comm/world.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/status.h"
#include "comm/local_communicator.h"
#include "comm/nccl_communicator.h"
#include "tests/testing/run_ranks.h"

namespace graft::comm {
namespace {

using testing::RunRanks;

// RunRanks keeps the communicator; a World owns one, so it gets the whole world as a split.
World MakeWorld(Communicator& all) { return World(all.Split(0, all.rank(), "world")); }

TEST(RankGrid, PipelineRanksAreNeighbours) {
  const RankGrid grid{3, 4};
  EXPECT_EQ(grid.world(), 12);
  for (int rank = 0; rank < 12; ++rank) {
    EXPECT_EQ(grid.Rank(grid.DataRank(rank), grid.PipelineRank(rank)), rank);
  }
  EXPECT_EQ(grid.Rank(1, 3) - grid.Rank(1, 2), 1);
  EXPECT_EQ(grid.Rank(2, 0) - grid.Rank(1, 0), 4);
}

TEST(World, CreateWithoutLauncherIsOneRank) {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) unsetenv(name);
  unsetenv("SLURM_STEP_NUM_TASKS");
  auto world = World::Create();
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_EQ((*world)->size(), 1);
  EXPECT_EQ((*world)->local_size(), 1);
  EXPECT_STREQ((*world)->all().backend(), "local");
  auto groups = (*world)->MakeGroups(RankGrid{1, 1});
  ASSERT_TRUE(groups.ok());
  EXPECT_EQ(groups->data_group->size(), 1);
}

TEST(World, CreateInAnUnconnectedSlurmStepIsAnError) {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) unsetenv(name);
  setenv("SLURM_STEP_NUM_TASKS", "2", 1);
  const auto world = World::Create();
  unsetenv("SLURM_STEP_NUM_TASKS");
  EXPECT_EQ(KindOf(world.status()), ErrorKind::kPeer);
}

TEST(World, GroupsFollowTheGrid) {
  RunRanks(6, [](Communicator& all) {
    World world = MakeWorld(all);
    EXPECT_EQ(world.local_size(), 6);
    EXPECT_EQ(world.local_rank(), world.rank());
    auto groups = world.MakeGroups(RankGrid{2, 3});
    ASSERT_TRUE(groups.ok());
    EXPECT_EQ(groups->data_group->size(), 2);
    EXPECT_EQ(groups->data_group->rank(), world.rank() / 3);
    EXPECT_EQ(groups->pipeline_group->size(), 3);
    EXPECT_EQ(groups->pipeline_group->rank(), world.rank() % 3);
    // The data group of a stage holds the ranks s and s + 3: their sum tells which ones are
    // together.
    int64_t sum = world.rank();
    groups->data_group->AllReduce({&sum, 1, DType::kInt64, -1}, ReduceOp::kSum);
    EXPECT_EQ(sum, 2 * (world.rank() % 3) + 3);
  });
}

TEST(World, GridThatDoesNotFitIsARecipeErrorWithTheNumberOfRanks) {
  RunRanks(2, [](Communicator& all) {
    World world = MakeWorld(all);
    const auto groups = world.MakeGroups(RankGrid{2, 2});
    EXPECT_EQ(KindOf(groups.status()), ErrorKind::kRecipe);
    const std::string text(groups.status().message());
    EXPECT_NE(text.find("needs 4 ranks"), std::string::npos) << text;
    EXPECT_NE(text.find("has 2 ranks"), std::string::npos) << text;
    EXPECT_EQ(KindOf(world.MakeGroups(RankGrid{-1, -2}).status()), ErrorKind::kRecipe);
  });
}

TEST(World, VersionsNameTheLibraries) {
  EXPECT_NE(std::string(MpiVersion()), "");
  const std::string nccl = NcclVersion();
  EXPECT_TRUE(nccl == "not built in" || nccl.rfind("NCCL 2.", 0) == 0) << nccl;
}

// Without NCCL or without that device: a recipe error in place of a crash.
TEST(World, NcclOnADeviceThatIsNotThereIsARecipeError) {
  const auto made =
      MakeNcclCommunicator(std::move(MakeLocalCommunicators(1)[0]), 4096, NcclTransfers::kTogether);
  EXPECT_EQ(KindOf(made.status()), ErrorKind::kRecipe);
  EXPECT_NE(std::string(made.status().message()).find("nccl"), std::string::npos);
}

}  // namespace
}  // namespace graft::comm
