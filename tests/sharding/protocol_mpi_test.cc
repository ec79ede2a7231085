// Many ranks of a program without a model, run by mpirun: they set up the groups of a 16 x 4 grid,
// agree on the plan of a step, and commit a checkpoint together by the protocol of
// sharding/checkpoint_writer.h. Links without LibTorch, so that 64 of them fit on a small machine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/logging.h"
#include "base/status.h"
#include "comm/agree.h"
#include "comm/world.h"
#include "sharding/checkpoint_folder.h"
#include "sharding/checkpoint_writer.h"
#include "sharding/plan.h"
#include "sharding/step_plan.h"
#include "tests/sharding/shapes.h"
#include "tests/sharding/tiny_run.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"
#include "trainer/plan_check.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;

constexpr int kStages = 4;
constexpr int kLayers = 64;
constexpr int64_t kStep = 7;

comm::World* world = nullptr;

// The folder of rank 0 by name; it goes away when rank 0's object does.
class SharedFolder {
 public:
  SharedFolder() {
    if (world->rank() == 0) mine_ = std::make_unique<testing::TempFolder>();
    path_ = comm::BroadcastString(world->all(), mine_ ? mine_->path() : "", 0);
  }
  const std::string& path() const { return path_; }

 private:
  std::unique_ptr<testing::TempFolder> mine_;
  std::string path_;
};

ParameterShape Parameter(int layer) {
  return {absl::StrCat("m.", 1000 + layer, ".red_scale"), {8}};
}

float ValueOf(int layer, int64_t i) {
  return static_cast<float>(layer) + static_cast<float>(i) / 8;
}

// Units are dealt to the ranks of the stage that holds them.
bool IsMine(const comm::RankGrid& grid, int layer) {
  return layer * kStages / kLayers == grid.PipelineRank(world->rank()) &&
         layer % grid.data == grid.DataRank(world->rank());
}

absl::StatusOr<std::vector<WrittenShard>> WriteMine(const comm::RankGrid& grid,
                                                    const std::string& folder) {
  std::vector<WrittenShard> written;
  for (int layer = 0; layer < kLayers; ++layer) {
    if (!IsMine(grid, layer)) continue;
    std::vector<float> numbers(24);
    for (int64_t i = 0; i < 24; ++i) numbers[static_cast<size_t>(i)] = ValueOf(layer, i);
    const StateToWrite state{Parameter(layer), static_cast<uint64_t>(8 * layer), numbers.data(),
                             numbers.data() + 8, numbers.data() + 16};
    GRAFT_ASSIGN_OR_RETURN(
        WrittenShard shard,
        WriteShard(folder, UnitOf(state.parameter.name, layer, kLayers), {state}));
    written.push_back(std::move(shard));
  }
  return written;
}

absl::Status Commit(const std::string& checkpoints, const std::string& temp,
                    const std::vector<std::string>& texts) {
  CommitJob job;
  job.checkpoints = checkpoints;
  job.temp = temp;
  job.manifest = testing::TinyManifest(kStep);
  job.recipe = "run: {name: many}\n";
  for (int layer = 0; layer < kLayers; ++layer) job.expected.push_back(Parameter(layer));
  for (const std::string& text : texts) {
    GRAFT_ASSIGN_OR_RETURN(std::vector<WrittenShard> shards, ParseWritten(text));
    std::move(shards.begin(), shards.end(), std::back_inserter(job.shards));
  }
  return CommitCheckpoint(job).status();
}

std::string PlanText(const comm::RankGrid& grid) {
  TrainableCounts counts;
  counts.layers.assign(kLayers, 5);
  PlanOptions options;
  options.stages = kStages;
  const Plan plan = ValueOrThrow(MakePlan(Shape(64, kLayers, 4, 2, 96, 131), counts, options));
  return ValueOrThrow(CompileStep(plan, {ScheduleKind::k1F1B, grid.data, 8}));
}

TEST(Protocol, GroupsAreTheGrid) {
  const comm::RankGrid grid{world->size() / kStages, kStages};
  const comm::Groups groups = ValueOrThrow(world->MakeGroups(grid));
  EXPECT_EQ(groups.data_group->size(), grid.data);
  EXPECT_EQ(groups.pipeline_group->size(), kStages);
  int64_t sums[2] = {world->rank(), world->rank()};
  groups.data_group->AllReduce({sums, 1, comm::DType::kInt64, -1}, comm::ReduceOp::kSum);
  groups.pipeline_group->AllReduce({sums + 1, 1, comm::DType::kInt64, -1}, comm::ReduceOp::kSum);
  const int64_t n = grid.data, stage = grid.PipelineRank(world->rank());
  EXPECT_EQ(sums[0], kStages * n * (n - 1) / 2 + n * stage);
  const int64_t first = world->rank() - stage;
  EXPECT_EQ(sums[1], kStages * first + kStages * (kStages - 1) / 2);
}

TEST(Protocol, RanksAgreeOnThePlanOrNameTheOneThatDiffers) {
  const comm::RankGrid grid{world->size() / kStages, kStages};
  const std::string text = PlanText(grid);
  EXPECT_THAT(trainer::CheckSameOnAllRanks(world->all(), "the plan", text), IsOk());
  const int odd = world->size() - 2;
  const std::string other = world->rank() == odd ? "another\n" + text : text;
  EXPECT_THAT(trainer::CheckSameOnAllRanks(world->all(), "the plan", other),
              FailsWith(ErrorKind::kBug, absl::StrCat("rank ", odd, ": the plan differs")));
}

TEST(Protocol, OneRanksErrorIsEverybodys) {
  const int last = world->size() - 1;
  const absl::Status mine = world->rank() == last ? IoError("no space") : absl::OkStatus();
  EXPECT_THAT(comm::AgreeOnStatus(world->all(), mine),
              FailsWith(ErrorKind::kIo, absl::StrCat("rank ", last, ": no space")));
}

TEST(Protocol, AllRanksCommitOneCheckpoint) {
  const SharedFolder folder;
  const comm::RankGrid grid{world->size() / kStages, kStages};
  const std::string temp = absl::StrCat(StepFolderName(kStep), kTempMark, "0001");
  absl::Status status;
  if (world->rank() == 0) status = MakeTempFolder(folder.path(), temp);
  ASSERT_THAT(comm::AgreeOnStatus(world->all(), status), IsOk());
  const auto written = WriteMine(grid, JoinPath(folder.path(), temp));
  ASSERT_THAT(comm::AgreeOnStatus(world->all(), written.status()), IsOk());
  EXPECT_EQ(written->size(), 1u) << "64 layers, 64 ranks";
  const auto texts = comm::AllGatherStrings(world->all(), WrittenText(*written));
  if (world->rank() == 0) status = Commit(folder.path(), temp, texts);
  ASSERT_THAT(comm::AgreeOnStatus(world->all(), status), IsOk());

  // Every rank checks what it has not written.
  const std::string committed = JoinPath(folder.path(), StepFolderName(kStep));
  const auto manifest = ReadManifest(committed);
  ASSERT_THAT(comm::AgreeOnStatus(world->all(), manifest.status()), IsOk());
  const int layer = (world->rank() * kLayers / world->size() + 1) % kLayers;
  const std::string file = ShardFile(UnitOf(Parameter(layer).name, layer, kLayers));
  for (const CheckpointFile& entry : manifest->files) {
    if (entry.file == file) status = CheckShard(committed, *manifest, entry).status();
  }
  EXPECT_THAT(comm::AgreeOnStatus(world->all(), status), IsOk());
  EXPECT_EQ(manifest->files.size(), kLayers + 1u);
  EXPECT_EQ(manifest->adapter.parameters, 8 * kLayers);
  world->all().Barrier();
}

}  // namespace
}  // namespace graft::sharding

int main(int argc, char** argv) {
  graft::InitLogging(argv[0]);
  ::testing::InitGoogleTest(&argc, argv);
  auto created = graft::ValueOrThrow(graft::comm::World::Create());
  graft::sharding::world = created.get();
  created->all().set_timeout(absl::Seconds(60));
  // mpirun reports the worst of the exit codes.
  return RUN_ALL_TESTS();
}
