// Training steps whose micro-batches are recorded and replayed give the numbers of those that are
// launched, bit for bit. A recording on the host runs the pass again; it sees only what lies at
// fixed places, as a GPU's does.
#include "sharding/step_graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
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
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// What records, and what goes wrong with it.
struct HostRecorder {
  std::optional<std::string> fails;         // behind the first run, as a capture does
  std::function<void()> after_each_launch;  // spoils a replay
  int memory = 0;                           // a recording of another one is not valid
  int lose = 0;                             // so many have lost their memory once they are made
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
          if (fails) return BugError(*fails);
          auto pass = std::make_unique<Pass>(*this, body);
          if (lose > 0) --lose, ++memory;
          return pass;
        };
  }
};

// Both runs, step by step; `between` is called before each step of the recorded one. Returns its
// summary.
std::string ExpectSameSteps(const GraphCase& which, HostRecorder& recorder,
                            const std::function<void(GraphedModel&)>& between = nullptr) {
  GraphedModel plain(which, torch::kCPU, torch::kFloat32, nullptr);
  GraphedModel graphed(which, torch::kCPU, torch::kFloat32, recorder.Get());
  for (const auto& batches : GraphSteps(plain)) {
    if (between) between(graphed);
    const StepResult want = plain.Step(batches), got = graphed.Step(batches);
    EXPECT_EQ(got.losses, want.losses);
    EXPECT_EQ(got.timeline.size(), want.timeline.size());
    EXPECT_GT(plain.gradients().abs().max().item<float>(), 0.0f);
    EXPECT_TRUE(at::equal(graphed.gradients(), plain.gradients()));
  }
  EXPECT_EQ(plain.graphs(), nullptr);
  return graphed.graphs()->Summary();
}

class StepGraphTest : public ::testing::TestWithParam<std::tuple<GraphCase, bool>> {};

TEST_P(StepGraphTest, ReplaysGiveTheNumbersOfLaunches) {
  std::optional<models::DeviceKernelsOnHost> device_way;
  if (std::get<1>(GetParam())) device_way.emplace();
  HostRecorder recorder;
  EXPECT_EQ(ExpectSameSteps(std::get<0>(GetParam()), recorder),
            "CUDA graphs: 9 of 16 micro-batches were replayed, 3 recorded");
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

constexpr char kGivenUp[] =
    "CUDA graphs: none of 16 micro-batches was replayed: a warning above says why";

TEST(StepGraph, AFailedRecordingLeavesNothingBehind) {
  HostRecorder recorder;
  recorder.fails = "this pass cannot be recorded\nstack";
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(ExpectSameSteps(Lora(), recorder), kGivenUp);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("training without CUDA graphs: this pass cannot be recorded\n"));
  EXPECT_EQ(recorder.records, 1);  // it is not tried again
  EXPECT_EQ(recorder.launches, 0);
}

TEST(StepGraph, AWarningForLackOfMemorySaysWhoPlansIt) {
  HostRecorder recorder;
  recorder.fails = "CUDA out of memory. Tried to allocate 2.00 GiB.\nstack";
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(ExpectSameSteps(Lora(), recorder), kGivenUp);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("Tried to allocate 2.00 GiB.; what is recorded needs a micro-batch's "
                              "memory a second time, which `graft plan` has in its line "
                              "\"recordings\"\n"),
                    Not(HasSubstr("stack"))));
}

TEST(StepGraph, AReplayWithOtherNumbersIsTheLast) {
  HostRecorder recorder;
  EXPECT_EQ(ExpectSameSteps(Lora(), recorder,
                            [&recorder](GraphedModel& model) {
                              recorder.after_each_launch = [&model] {
                                model.stage().adapters().gradients().add_(1e-3);
                              };
                            }),
            kGivenUp);
  EXPECT_EQ(recorder.records, 1);
  EXPECT_EQ(recorder.launches, 1);
}

// A GPU's memory goes back to the driver between two steps.
TEST(StepGraph, RecordingsWhoseMemoryIsGoneAreMadeAgain) {
  HostRecorder recorder;
  const std::string summary =
      ExpectSameSteps(Lora(), recorder, [&recorder](GraphedModel&) { ++recorder.memory; });
  EXPECT_THAT(summary, HasSubstr(": 2 of 16 micro-batches"));  // within a step only
  EXPECT_GT(recorder.records, 3);
}

// It goes back before the recording was ever launched, which would write to it.
TEST(StepGraph, ARecordingThatHasLostItsMemoryIsNotLaunched) {
  HostRecorder recorder;
  recorder.lose = 1;
  EXPECT_EQ(ExpectSameSteps(Lora(), recorder),
            "CUDA graphs: 8 of 16 micro-batches were replayed, 4 recorded");
  EXPECT_EQ(recorder.launches, 8 + 3);
  recorder = {};
  recorder.lose = 1000;
  EXPECT_EQ(ExpectSameSteps(Lora(), recorder), kGivenUp);
  EXPECT_EQ(recorder.records, 8);
  EXPECT_EQ(recorder.launches, 0);
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

TEST(StepGraph, TheSummarySaysWhyNothingWasReplayed) {
  HostRecorder recorder;
  GraphedModel model(Lora(), torch::kCPU, torch::kFloat32, recorder.Get());
  const auto summary_after = [&](int64_t length) {
    model.Step({model.Batch({length}, length)});
    return model.graphs()->Summary();
  };
  summary_after(5);
  EXPECT_EQ(summary_after(6),
            "CUDA graphs: none of 2 micro-batches was replayed: no layout (lengths, positions, "
            "supervised rows) came a second time");
  EXPECT_EQ(summary_after(5),
            "CUDA graphs: none of 3 micro-batches was replayed: no layout that was recorded came "
            "once more");
  ++recorder.memory;
  EXPECT_EQ(summary_after(5),
            "CUDA graphs: none of 4 micro-batches was replayed: LibTorch gave the memory of what "
            "was recorded back");
}

TEST(StepGraph, LayoutsThatAreTooManyAreForgotten) {
  HostRecorder recorder;
  GraphedModel model(Lora(), torch::kCPU, torch::kFloat32, nullptr);
  MicroBatchGraphs graphs(model.stage(), recorder.Get());
  models::MicroBatch batch = model.Batch({4}, 0);
  const auto records = [&](size_t layout) {
    batch.segments[0].prompt_length = static_cast<int64_t>(layout);
    const int before = recorder.records;
    graphs.Run(batch);
    return recorder.records > before;
  };
  for (size_t i = 0; i < MicroBatchGraphs::kMaxSeen; ++i) EXPECT_FALSE(records(i)) << i;
  EXPECT_TRUE(records(0));
  EXPECT_TRUE(records(MicroBatchGraphs::kMaxSeen - 1));
  EXPECT_FALSE(records(MicroBatchGraphs::kMaxSeen));  // one more, for which the others go
  EXPECT_FALSE(records(1));
  EXPECT_TRUE(records(1));
  EXPECT_TRUE(records(MicroBatchGraphs::kMaxSeen));
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
  EXPECT_EQ(executor.graphs()->replays(), 0);
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
