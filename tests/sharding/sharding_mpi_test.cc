// The pipeline over real MPI ranks, run by mpirun: data x pipeline layouts against one rank that
// does all of it.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/logging.h"
#include "comm/reducer.h"
#include "comm/world.h"
#include "sharding/executor.h"
#include "sharding/gather.h"
#include "sharding/gradient_reduction.h"
#include "tests/sharding/fake_stage.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FakeMethod;
using ::graft::testing::FakeMicroBatches;
using ::graft::testing::FakePlan;
using ::graft::testing::FakeStage;
using ::graft::testing::LayersUpTo;

constexpr int kLayers = 8;
constexpr int kMicroBatches = 8;

comm::World* world = nullptr;

// Every data replica takes its share of the micro-batches.
std::vector<models::MicroBatch> ShareOf(int data_rank, int data) {
  const auto all = FakeMicroBatches(kMicroBatches);
  std::vector<models::MicroBatch> share;
  for (size_t i = static_cast<size_t>(data_rank); i < all.size(); i += static_cast<size_t>(data)) {
    share.push_back(all[i]);
  }
  return share;
}

struct Outcome {
  double loss = 0;
  NamedTensors after;  // parameters minus their summed gradients, on rank 0
};

Outcome RunLayout(comm::Groups& groups, ScheduleKind schedule, int chunks) {
  const FakeMethod method(LayersUpTo(kLayers));
  const Plan plan = FakePlan(kLayers, method, groups.grid.pipeline, chunks);
  auto stage = FakeStage(plan, groups.pipeline_group->rank(), method);
  ExecutorOptions options;
  options.schedule = schedule;
  Executor executor(plan, *stage, *groups.pipeline_group, options);
  const auto share = ShareOf(groups.data_group->rank(), groups.grid.data);
  GradientReduction reduction(stage->adapters(), kLayers, *groups.data_group, {},
                              /*piece_bytes=*/64);
  const StepResult result =
      executor.TrainStep(share, [&](int layer) { reduction.LayersDone(layer); });
  reduction.Finish();
  at::NoGradGuard no_grad;
  stage->adapters().values().detach().sub_(stage->adapters().gradients());
  return {result.loss_sum, GatherParameters(*groups.pipeline_group, stage->adapters())};
}

Outcome Alone() {
  comm::Groups groups;
  groups.data_group = world->all().Split(world->rank(), 0, "alone");
  groups.pipeline_group = world->all().Split(world->rank(), 0, "alone");
  return RunLayout(groups, ScheduleKind::k1F1B, 1);
}

void ExpectLayout(int data, int pipeline, ScheduleKind schedule, int chunks) {
  SCOPED_TRACE(std::to_string(data) + " x " + std::to_string(pipeline) + " " +
               ScheduleName(schedule));
  const Outcome expected = Alone();
  comm::Groups groups = ValueOrThrow(world->MakeGroups({data, pipeline}));
  Outcome found = RunLayout(groups, schedule, chunks);
  comm::ControlVector control;
  control.loss_sum = found.loss;
  EXPECT_NEAR(comm::ReduceControl(world->all(), control).loss_sum, expected.loss, 1e-9);
  if (groups.pipeline_group->rank() > 0) return;
  ASSERT_EQ(found.after.size(), expected.after.size());
  for (size_t i = 0; i < found.after.size(); ++i) {
    EXPECT_EQ(found.after[i].first, expected.after[i].first);
    EXPECT_TRUE(at::allclose(found.after[i].second, expected.after[i].second, 1e-5, 1e-6))
        << found.after[i].first;
  }
}

TEST(ShardingMpi, EveryLayoutOfTheseRanks) {
  const int size = world->size();
  for (int pipeline = 1; pipeline <= size; pipeline *= 2) {
    for (ScheduleKind schedule : {ScheduleKind::kGPipe, ScheduleKind::k1F1B}) {
      ExpectLayout(size / pipeline, pipeline, schedule, 1);
    }
    ExpectLayout(size / pipeline, pipeline, ScheduleKind::kInterleaved, 2);
  }
}

}  // namespace
}  // namespace graft::sharding

int main(int argc, char** argv) {
  graft::InitLogging(argv[0]);
  ::testing::InitGoogleTest(&argc, argv);
  auto created = graft::ValueOrThrow(graft::comm::World::Create());
  graft::sharding::world = created.get();
  created->all().set_timeout(absl::Seconds(60));
  const int failed = RUN_ALL_TESTS();
  // mpirun reports the worst of the exit codes.
  return failed;
}
