// Training steps whose micro-batches are recorded and replayed give the numbers of those that are
// launched, bit for bit. A recording on the host runs the pass again; it sees only what lies at
// fixed places, as a GPU's does.
#include "sharding/step_graph.h"

#include <gtest/gtest.h>

#include <tuple>

#include "models/device.h"
#include "tests/sharding/fake_stage.h"
#include "tests/sharding/step_graph_case.h"

namespace graft::sharding {
namespace {

using ::graft::testing::GraphCase;
using ::graft::testing::GraphCases;
using ::graft::testing::GraphedModel;
using ::graft::testing::GraphSteps;
using ::graft::testing::kGraphReplays;

// What records, and what goes wrong with it.
struct HostRecorder {
  bool fails = false;                       // behind the first run, as a capture does
  std::function<void()> after_each_launch;  // spoils a replay
  int memory = 0;                           // a recording of another one is not valid
  int records = 0, launches = 0;

  class Pass : public RecordedPass {
   public:
    Pass(HostRecorder& recorder, std::function<void()> body)
        : recorder_(recorder), body_(std::move(body)), memory_(recorder.memory) {}
    bool IsValid() const override { return memory_ == recorder_.memory; }
    void Launch() const override {
      EXPECT_TRUE(IsValid());
      ++recorder_.launches;
      body_();
      if (recorder_.after_each_launch) recorder_.after_each_launch();
    }

   private:
    HostRecorder& recorder_;
    const std::function<void()> body_;
    const int memory_;
  };

  PassRecorder Get() {
    return
        [this](const std::function<void()>& body) -> absl::StatusOr<std::unique_ptr<RecordedPass>> {
          ++records;
          try {
            body();
          } catch (const std::exception& error) {
            return BugError(error.what());
          }
          if (fails) return BugError("this pass cannot be recorded");
          return std::make_unique<Pass>(*this, body);
        };
  }
};

// Both runs, step by step; `between` is called before each step of the recorded one.
int64_t ExpectSameSteps(const GraphCase& which, HostRecorder& recorder,
                        const std::function<void(GraphedModel&)>& between = nullptr) {
  GraphedModel plain(which, torch::kCPU, torch::kFloat32, nullptr);
  GraphedModel graphed(which, torch::kCPU, torch::kFloat32, recorder.Get());
  int64_t replayed = 0;
  for (const auto& batches : GraphSteps(plain)) {
    if (between) between(graphed);
    const StepResult want = plain.Step(batches), got = graphed.Step(batches);
    EXPECT_EQ(got.losses, want.losses);
    EXPECT_EQ(got.timeline.size(), want.timeline.size());
    EXPECT_GT(plain.gradients().abs().max().item<float>(), 0.0f);
    EXPECT_TRUE(at::equal(graphed.gradients(), plain.gradients()));
    EXPECT_EQ(want.replayed, 0);
    replayed += got.replayed;
  }
  return replayed;
}

class StepGraphTest : public ::testing::TestWithParam<std::tuple<GraphCase, bool>> {};

TEST_P(StepGraphTest, ReplaysGiveTheNumbersOfLaunches) {
  std::optional<models::DeviceKernelsOnHost> device_way;
  if (std::get<1>(GetParam())) device_way.emplace();
  HostRecorder recorder;
  EXPECT_EQ(ExpectSameSteps(std::get<0>(GetParam()), recorder), kGraphReplays);
  EXPECT_EQ(recorder.records, 3);
  EXPECT_EQ(recorder.launches, kGraphReplays + 3);
}

INSTANTIATE_TEST_SUITE_P(All, StepGraphTest,
                         ::testing::Combine(::testing::ValuesIn(GraphCases()), ::testing::Bool()),
                         [](const auto& row) {
                           return std::get<0>(row.param).title +
                                  (std::get<1>(row.param) ? "_device" : "_host");
                         });

GraphCase Lora() { return GraphCases()[0]; }

TEST(StepGraph, AFailedRecordingLeavesNothingBehind) {
  HostRecorder recorder;
  recorder.fails = true;
  EXPECT_EQ(ExpectSameSteps(Lora(), recorder), 0);
  EXPECT_EQ(recorder.records, 1);  // it is not tried again
  EXPECT_EQ(recorder.launches, 0);
}

TEST(StepGraph, AReplayWithOtherNumbersIsTheLast) {
  HostRecorder recorder;
  EXPECT_EQ(ExpectSameSteps(Lora(), recorder,
                            [&recorder](GraphedModel& model) {
                              recorder.after_each_launch = [&model] {
                                model.stage().adapters().gradients().add_(1e-3);
                              };
                            }),
            0);
  EXPECT_EQ(recorder.records, 1);
  EXPECT_EQ(recorder.launches, 1);
}

// A GPU's memory goes back to the driver between two steps.
TEST(StepGraph, RecordingsWhoseMemoryIsGoneAreMadeAgain) {
  HostRecorder recorder;
  const int64_t replayed =
      ExpectSameSteps(Lora(), recorder, [&recorder](GraphedModel&) { ++recorder.memory; });
  EXPECT_EQ(replayed, 2);  // within a step only
  EXPECT_GT(recorder.records, 3);
}

TEST(StepGraph, MemoryThatIsLostTimeAndAgainEndsIt) {
  HostRecorder recorder;
  GraphedModel plain(Lora(), torch::kCPU, torch::kFloat32, nullptr);
  GraphedModel graphed(Lora(), torch::kCPU, torch::kFloat32, recorder.Get());
  for (int64_t number = 0; number < 12; ++number, ++recorder.memory) {
    const std::vector<models::MicroBatch> batches = {plain.Batch({6, 5}, number)};
    EXPECT_EQ(graphed.Step(batches).losses, plain.Step(batches).losses);
    EXPECT_TRUE(at::equal(graphed.gradients(), plain.gradients()));
  }
  EXPECT_EQ(recorder.records, 8);
}

TEST(StepGraph, ManyLayoutsAreLaunched) {
  HostRecorder recorder;
  GraphedModel plain(Lora(), torch::kCPU, torch::kFloat32, nullptr);
  GraphedModel graphed(Lora(), torch::kCPU, torch::kFloat32, recorder.Get());
  for (int64_t number = 0; number < 3; ++number) {
    std::vector<models::MicroBatch> batches;
    for (size_t i = 0; i < MicroBatchGraphs::kMaxRecordings + 3; ++i)
      batches.push_back(plain.Batch({static_cast<int64_t>(3 + i)}, number));
    EXPECT_EQ(graphed.Step(batches).losses, plain.Step(batches).losses);
    EXPECT_TRUE(at::equal(graphed.gradients(), plain.gradients()));
  }
  EXPECT_EQ(recorder.records, static_cast<int>(MicroBatchGraphs::kMaxRecordings));
}

TEST(StepGraph, EvaluationAndScoringAreLaunched) {
  HostRecorder recorder;
  const testing::FakeMethod method({0, 1});
  const Plan plan = testing::FakePlan(2, method, 1);
  const auto stage = testing::FakeStage(plan, 0, method);
  const auto pipeline = std::move(comm::MakeLocalCommunicators(1)[0]);
  ExecutorOptions options;
  options.pass_recorder = recorder.Get();
  Executor executor(plan, *stage, *pipeline, options);
  const std::vector<models::MicroBatch> batches(3, testing::FakeMicroBatches(1)[0]);
  executor.Evaluate(batches);
  executor.Differentiate(batches, nullptr);
  EXPECT_EQ(recorder.records, 0);
  // This backbone takes tokens and targets from the host, which a recorded pass does not have.
  const std::vector<double> launched = executor.Evaluate(batches).losses;
  const StepResult result = executor.TrainStep(batches);
  EXPECT_EQ(recorder.records, 1);
  EXPECT_EQ(result.replayed, 0);
  EXPECT_EQ(result.losses, launched);
}

TEST(KeptCopies, ALaterRunGetsTheTensorsOfTheFirst) {
  models::KeptCopies copies;
  const std::vector<int64_t> rows = {3, 1, 4};
  const torch::Tensor factors = torch::tensor({0.5f, 2.0f});
  torch::Tensor first, second;
  {
    const models::KeptCopies::Run run(copies);
    first = models::IndexTensor(rows, torch::kCPU);
    second = models::ToDevice(factors, torch::kCPU);
  }
  EXPECT_FALSE(models::IndexTensor(rows, torch::kCPU).is_same(first));
  for (int i = 0; i < 2; ++i) {
    const models::KeptCopies::Run run(copies);
    EXPECT_TRUE(models::IndexTensor(rows, torch::kCPU).is_same(first));
    EXPECT_TRUE(models::ToDevice(factors.clone(), torch::kCPU).is_same(second));
  }
  const models::KeptCopies::Run run(copies);
  EXPECT_THROW(models::IndexTensor({3, 1, 5}, torch::kCPU), StatusError);
}

}  // namespace
}  // namespace graft::sharding
