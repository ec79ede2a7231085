// Traces of whole runs: on every rank the operations stand in the order of the schedule, and spans
// of a main thread nest.
#include "trainer/step_trace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "comm/booking.h"
#include "sharding/schedule.h"
#include "tests/testing/status_matchers.h"
#include "tests/trainer/training_run.h"

namespace graft::trainer {
namespace {

using testing::IsOk;
using testing::Json;
using testing::TrainingRun;

struct Layout {
  const char* schedule;
  int64_t data, pipeline, chunks;
};

constexpr int64_t kMicroBatches = 4;  // of a rank and step

Recipe TracedRecipe(const TrainingRun& run, const Layout& layout) {
  Recipe recipe = run.NewRecipe("out");
  recipe.parallel.schedule = layout.schedule;
  recipe.parallel.data = layout.data;
  recipe.parallel.pipeline = layout.pipeline;
  recipe.parallel.chunks = layout.chunks;
  recipe.optim.global_batch = 2 * kMicroBatches * layout.data;
  recipe.optim.micro_batch = 2;
  recipe.log.trace = 2;
  return recipe;
}

// The complete spans of each rank, in the order of the file.
std::map<int, std::vector<Json>> MainSpans(const Json& file) {
  std::map<int, std::vector<Json>> spans;
  for (const Json& event : file["traceEvents"]) {
    if (event["ph"] == "X") spans[event["pid"]].push_back(event);
  }
  return spans;
}

// Each two spans are one inside the other or apart. Times are rounded to thousandths.
void ExpectNested(const std::vector<Json>& spans) {
  std::vector<double> open;  // ends of the spans around
  double begin = 0;
  for (const Json& span : spans) {
    const double from = span["ts"], to = from + span["dur"].get<double>();
    EXPECT_GE(from, begin) << span;
    begin = from;
    while (!open.empty() && open.back() <= from + 2e-3) open.pop_back();
    if (!open.empty()) {
      EXPECT_LE(to, open.back() + 2e-3) << span;
    }
    open.push_back(to);
  }
}

std::vector<std::string> OpNames(const std::vector<sharding::Op>& ops, int64_t steps) {
  std::vector<std::string> names;
  for (int64_t step = 0; step < steps; ++step) {
    for (const sharding::Op& op : ops) {
      std::string name = op.pass == sharding::Pass::kForward ? "forward " : "backward ";
      name += std::to_string(op.micro_batch);
      if (op.chunk > 0) name += " chunk " + std::to_string(op.chunk);
      names.push_back(name);
    }
  }
  return names;
}

std::vector<std::string> OpsOf(const std::vector<Json>& spans) {
  std::vector<std::string> names;
  for (const Json& span : spans) {
    if (span["args"].contains("chunk")) names.push_back(span["name"]);
  }
  return names;
}

// What `plan` simulates, in time order.
std::vector<sharding::Op> SimulatedOps(const sharding::ScheduleShape& shape, size_t stage) {
  sharding::SimulationInput input;
  input.schedule = ValueOrThrow(sharding::BuildSchedule(shape));
  input.stages = shape.stages;
  input.chunks = shape.chunks;
  input.backward = shape.backward;
  input.forward_seconds.assign(shape.backward.size(), 1.0);
  input.backward_seconds.assign(shape.backward.size(), 1.1);
  const sharding::Simulation simulation = ValueOrThrow(sharding::Simulate(input));
  std::vector<sharding::SimulatedOp> timeline = simulation.timeline[stage];
  std::stable_sort(timeline.begin(), timeline.end(),
                   [](const auto& a, const auto& b) { return a.begin < b.begin; });
  std::vector<sharding::Op> ops;
  for (const sharding::SimulatedOp& op : timeline) ops.push_back(op.op);
  return ops;
}

class StepTraceTest : public ::testing::TestWithParam<Layout> {};

TEST_P(StepTraceTest, OperationsRunInTheSimulatedOrderAndSpansNest) {
  const Layout& layout = GetParam();
  const TrainingRun run;
  const Recipe recipe = TracedRecipe(run, layout);
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  const Json file = Json::parse(run.outputs().Read("out/trace/steps-00000002-00000003.json"));
  const std::map<int, std::vector<Json>> ranks = MainSpans(file);
  ASSERT_EQ(ranks.size(), static_cast<size_t>(layout.data * layout.pipeline));
  sharding::ScheduleShape shape{ValueOrThrow(sharding::ParseSchedule(layout.schedule)),
                                static_cast<int>(layout.pipeline),
                                static_cast<int>(recipe.parallel.parts_per_stage()),
                                static_cast<int>(kMicroBatches),
                                {}};
  shape.backward.assign(static_cast<size_t>(shape.stages * shape.chunks), true);
  for (const auto& [rank, spans] : ranks) {
    SCOPED_TRACE(rank);
    ExpectNested(spans);
    const auto stage = static_cast<size_t>(rank % layout.pipeline);
    EXPECT_EQ(OpsOf(spans), OpNames(SimulatedOps(shape, stage), 2));
    const auto count = [&spans = spans](const std::string& name) {
      return std::count_if(spans.begin(), spans.end(),
                           [&](const Json& span) { return span["name"] == name; });
    };
    EXPECT_EQ(count("step 2") + count("step 3"), 2);
    EXPECT_EQ(count("optimizer"), 2);
  }
}

// Every tensor that one stage sends, another one receives.
TEST_P(StepTraceTest, TransfersAppearOnBothSides) {
  const Layout& layout = GetParam();
  const TrainingRun run;
  const Recipe recipe = TracedRecipe(run, layout);
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  const Json file = Json::parse(run.outputs().Read("out/trace/steps-00000002-00000003.json"));
  std::map<std::string, int64_t> count, bytes;
  for (const Json& event : file["traceEvents"]) {
    if (event["ph"] != "b") continue;
    ++count[event["name"]];
    bytes[event["name"]] += event["args"]["bytes"].get<int64_t>();
  }
  // Forward and backward over each boundary, per micro-batch, replica and step.
  const int64_t boundaries = layout.pipeline * recipe.parallel.parts_per_stage() - 1;
  const int64_t expected =
      layout.pipeline > 1 ? 2 * boundaries * kMicroBatches * layout.data * 2 : 0;
  EXPECT_EQ(count["send"], expected);
  EXPECT_EQ(count["receive"], expected);
  EXPECT_EQ(bytes["send"], bytes["receive"]);
}

// As a GPU group's: beside the main thread, which shows what it waited.
TEST(StepTraceReductionTest, AStartedAllReduceRunsBesideTheMainThread) {
  const testing::TempFolder folder;
  const auto world = ValueOrThrow(comm::World::Create());
  StepTrace trace(*world, "alone", /*steps=*/1);
  trace.BeginStep(1);
  trace.EndStep({});
  trace.BeginStep(2);
  class Finished : public comm::Request {
    bool Test() override { return true; }
    void Wait() override {}
  };
  float value = 0;
  comm::BookStarted(world->all(), comm::kStartedAllReduce, {&value, 1, comm::DType::kFloat32, -1},
                    [] { return std::make_unique<Finished>(); })
      ->Wait();
  trace.EndStep({});
  ASSERT_THAT(trace.Write(folder.Path("trace")), IsOk());
  const Json file = Json::parse(folder.Read("trace/steps-00000002-00000002.json"));
  std::map<std::string, std::string> phases;  // by name
  for (const Json& event : file["traceEvents"]) {
    if (event["args"].contains("bytes")) phases[event["name"]] += event["ph"];
  }
  EXPECT_EQ(phases, (std::map<std::string, std::string>{{"all-reduce", "b"},
                                                        {"wait for an all-reduce", "X"}}));
}

INSTANTIATE_TEST_SUITE_P(Layouts, StepTraceTest,
                         ::testing::Values(Layout{"1f1b", 1, 1, 1}, Layout{"1f1b", 2, 2, 1},
                                           Layout{"gpipe", 1, 4, 1},
                                           Layout{"interleaved", 1, 2, 2}));

TEST(StepTraceOptionTest, WithoutTheKeyThereIsNoTraceAndAShortRunWritesWhatItHas) {
  const TrainingRun run;
  Recipe recipe = run.NewRecipe("plain");
  recipe.optim.steps = 3;
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  EXPECT_FALSE(PathExists(run.outputs().Path("plain/trace")));
  recipe.run.output = run.outputs().Path("short");
  recipe.log.trace = 100;
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  EXPECT_TRUE(PathExists(run.outputs().Path("short/trace/steps-00000002-00000003.json")));
  EXPECT_EQ(run.Losses("plain"), run.Losses("short"));
}

}  // namespace
}  // namespace graft::trainer
