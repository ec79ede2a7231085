// The pipeline against a plain loop over the micro-batches on the whole model: the same numbers,
// bit for bit, under every schedule and cut.
#include "sharding/executor.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>
#include <mutex>
#include <string>

#include "tests/sharding/fake_stage.h"
#include "tests/testing/run_ranks.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FakeBackbone;
using ::graft::testing::FakeConfig;
using ::graft::testing::FakeMethod;
using ::graft::testing::FakeMicroBatches;
using ::graft::testing::FakePlan;
using ::graft::testing::FakeStage;
using ::graft::testing::LayersUpTo;
using ::graft::testing::RunRanks;

constexpr int kLayers = 8;

struct Outcome {
  std::vector<double> losses;
  std::map<std::string, torch::Tensor> gradients;
};

void AddGradients(const adapters::AdapterSet& set, Outcome* outcome) {
  for (const adapters::NamedParameter& parameter : set.parameters()) {
    outcome->gradients[parameter.name] = parameter.value.grad().clone();
  }
}

Outcome PlainRun(const std::vector<int>& trained, int num_micro_batches) {
  FakeBackbone backbone(FakeConfig(kLayers), {0, kLayers, true, true});
  const FakeMethod method(trained);
  auto set = ValueOrThrow(
      adapters::AdapterSet::Attach(method, method.Sites(kLayers), {}, backbone.sites()));
  Outcome outcome;
  for (const models::MicroBatch& batch : FakeMicroBatches(num_micro_batches)) {
    models::SiteContext context;
    context.batch = &batch;
    context.training = true;
    const torch::Tensor hidden = backbone.Layers(backbone.Embed(context), context, nullptr);
    const torch::Tensor loss = backbone.LossSum(hidden, context);
    outcome.losses.push_back(loss.item<double>());
    EXPECT_EQ(loss.requires_grad(), !trained.empty());
    if (loss.requires_grad()) torch::autograd::backward({loss}, {at::ones_like(loss)});
  }
  AddGradients(*set, &outcome);
  return outcome;
}

struct Layout {
  ScheduleKind schedule = ScheduleKind::k1F1B;
  int stages = 1;
  int chunks = 1;
};

std::string Name(const Layout& layout) {
  return std::string(ScheduleName(layout.schedule)) + " p" + std::to_string(layout.stages) + " v" +
         std::to_string(layout.chunks);
}

// Runs on every rank between building and comparing.
using Check = std::function<void(const Plan&, Stage&, const StepResult&)>;

Outcome PipelineRun(const Layout& layout, const std::vector<int>& trained, int num_micro_batches,
                    const Check& check = nullptr) {
  const FakeMethod method(trained);
  const Plan plan = FakePlan(kLayers, method, layout.stages, layout.chunks);
  std::mutex mutex;
  Outcome outcome;
  RunRanks(layout.stages, [&](comm::Communicator& pipeline) {
    auto stage = FakeStage(plan, pipeline.rank(), method);
    ExecutorOptions options;
    options.schedule = layout.schedule;
    Executor executor(plan, *stage, pipeline, options);
    const auto batches = FakeMicroBatches(num_micro_batches);
    const StepResult result = executor.TrainStep(batches);
    std::lock_guard<std::mutex> lock(mutex);
    if (check) check(plan, *stage, result);
    if (pipeline.rank() + 1 == layout.stages) {
      outcome.losses = result.losses;
    } else {
      EXPECT_TRUE(result.losses.empty());
    }
    AddGradients(stage->adapters(), &outcome);
  });
  return outcome;
}

void ExpectSame(const Outcome& found, const Outcome& expected, const std::string& what) {
  EXPECT_EQ(found.losses, expected.losses) << what;
  ASSERT_EQ(found.gradients.size(), expected.gradients.size()) << what;
  for (const auto& [name, gradient] : expected.gradients) {
    ASSERT_EQ(found.gradients.count(name), 1u) << what << " " << name;
    EXPECT_TRUE(at::equal(found.gradients.at(name), gradient)) << what << " " << name;
  }
}

std::vector<Layout> Layouts(int num_micro_batches) {
  std::vector<Layout> layouts;
  for (int stages : {1, 2, 4}) {
    layouts.push_back({ScheduleKind::kGPipe, stages, 1});
    layouts.push_back({ScheduleKind::k1F1B, stages, 1});
    if (num_micro_batches % stages == 0) {
      layouts.push_back({ScheduleKind::kInterleaved, stages, 2});
    }
  }
  return layouts;
}

TEST(Executor, EqualsThePlainRunBitForBit) {
  for (int m : {1, 2, 4, 5, 8}) {
    const Outcome expected = PlainRun(LayersUpTo(kLayers), m);
    EXPECT_EQ(expected.losses.size(), static_cast<size_t>(m));
    EXPECT_GT(expected.gradients.at("layers.0.bias").abs().sum().item<float>(), 0);
    for (const Layout& layout : Layouts(m)) {
      ExpectSame(PipelineRun(layout, LayersUpTo(kLayers), m), expected,
                 Name(layout) + " m" + std::to_string(m));
    }
  }
}

TEST(Executor, StagesWithoutTrainables) {
  // With four stages: only the first, a middle, the last, all but one stage; one layer each in
  // between; a prompt.
  const std::vector<std::vector<int>> choices = {
      {0}, {3}, {7}, {2, 3, 4, 5, 6, 7}, {0, 1, 6, 7}, {0, 1, 2, 3, 4}, {-1}, {-1, 6}};
  for (const std::vector<int>& trained : choices) {
    const Outcome expected = PlainRun(trained, 4);
    for (const Layout& layout : Layouts(4)) {
      ExpectSame(PipelineRun(layout, trained, 4), expected,
                 Name(layout) + " from layer " + std::to_string(trained[0]));
    }
  }
}

TEST(Executor, NothingTrainedGivesLossesOnly) {
  const Outcome expected = PlainRun({}, 3);
  for (const Layout& layout : Layouts(3)) {
    ExpectSame(PipelineRun(layout, {}, 3), expected, Name(layout));
  }
}

TEST(Executor, FrozenPrefixBuildsNoGraph) {
  PipelineRun({ScheduleKind::k1F1B, 4, 1}, {5}, 4,
              [](const Plan& plan, Stage& stage, const StepResult&) {
                const auto& backbone = dynamic_cast<FakeBackbone&>(stage.backbone(0));
                const bool below = plan.Part(stage.index(), 0).end_layer() <= 5;
                EXPECT_EQ(backbone.passes_with_grad, below ? 0 : 4);
                EXPECT_EQ(backbone.trained_dropout, 4);
              });
}

TEST(Executor, RunsTheOperationsOfTheScheduleInOrder) {
  const Layout layout{ScheduleKind::kInterleaved, 2, 2};
  PipelineRun(layout, LayersUpTo(kLayers), 4,
              [&](const Plan& plan, Stage& stage, const StepResult& result) {
                ScheduleShape shape{layout.schedule, 2, 2, 4, {}};
                for (const StageChunk& part : plan.parts) shape.backward.push_back(part.backward);
                std::vector<Op> executed;
                double before = 0, compute = 0;
                for (const OpRecord& record : result.timeline) {
                  executed.push_back(record.op);
                  EXPECT_GE(record.begin_seconds, before);
                  before = record.end_seconds;
                  compute += record.end_seconds - record.begin_seconds;
                }
                EXPECT_EQ(executed, (*BuildSchedule(shape))[static_cast<size_t>(stage.index())]);
                EXPECT_DOUBLE_EQ(compute, result.compute_seconds);
                EXPECT_GT(result.blocked_seconds, 0);
                EXPECT_LE(result.compute_seconds + result.blocked_seconds, result.step_seconds);
              });
}

TEST(Executor, StepsFollowEachOtherAndGradientsAdd) {
  const FakeMethod method(LayersUpTo(kLayers));
  const Plan plan = FakePlan(kLayers, method, 2);
  const Outcome once = PlainRun(LayersUpTo(kLayers), 3);
  RunRanks(2, [&](comm::Communicator& pipeline) {
    auto stage = FakeStage(plan, pipeline.rank(), method);
    Executor executor(plan, *stage, pipeline, {});
    auto batches = FakeMicroBatches(3);
    executor.TrainStep(batches);
    const torch::Tensor first = stage->adapters().gradients().clone();
    executor.TrainStep(batches);
    EXPECT_TRUE(at::allclose(stage->adapters().gradients(), 2 * first, 1e-5, 1e-6));
    stage->adapters().ZeroGradients();
    executor.TrainStep(batches);
    EXPECT_TRUE(at::equal(stage->adapters().gradients(), first));
  });
}

TEST(Executor, EvaluationIsForwardOnly) {
  const Outcome expected = PlainRun(LayersUpTo(kLayers), 5);
  for (const Layout& layout :
       {Layout{ScheduleKind::k1F1B, 1, 1}, Layout{ScheduleKind::k1F1B, 2, 1},
        Layout{ScheduleKind::kInterleaved, 2, 2}, Layout{ScheduleKind::kGPipe, 4, 1}}) {
    const FakeMethod method(LayersUpTo(kLayers));
    const Plan plan = FakePlan(kLayers, method, layout.stages, layout.chunks);
    RunRanks(layout.stages, [&](comm::Communicator& pipeline) {
      auto stage = FakeStage(plan, pipeline.rank(), method);
      ExecutorOptions options;
      options.schedule = layout.schedule;
      Executor executor(plan, *stage, pipeline, options);
      const auto batches = FakeMicroBatches(5);
      const StepResult result = executor.Evaluate(batches);
      EXPECT_EQ(stage->adapters().gradients().abs().sum().item<float>(), 0);
      for (int chunk = 0; chunk < layout.chunks; ++chunk) {
        const auto& backbone = dynamic_cast<FakeBackbone&>(stage->backbone(chunk));
        EXPECT_EQ(backbone.passes_with_grad, 0);
        EXPECT_EQ(backbone.trained_dropout, 0);
      }
      if (pipeline.rank() + 1 < layout.stages) return;
      EXPECT_EQ(result.losses, expected.losses) << Name(layout);
      double sum = 0;
      for (double loss : expected.losses) sum += loss;
      EXPECT_EQ(result.loss_sum, sum);
    });
  }
}

TEST(Executor, LostNeighbourIsAPeerError) {
  const FakeMethod method(LayersUpTo(kLayers));
  const Plan plan = FakePlan(kLayers, method, 2);
  bool failed = false;
  RunRanks(2, [&](comm::Communicator& pipeline) {
    if (pipeline.rank() == 0) return;
    auto stage = FakeStage(plan, 1, method);
    Executor executor(plan, *stage, pipeline, {});
    const auto batches = FakeMicroBatches(2);
    try {
      executor.TrainStep(batches);
    } catch (const StatusError& error) {
      failed = KindOf(error.status()) == ErrorKind::kPeer;
    }
  });
  EXPECT_TRUE(failed);
}

TEST(Executor, DifferentPlansOfNeighboursAreABug) {
  const FakeMethod method(LayersUpTo(kLayers)), other(LayersUpTo(kLayers - 1));
  try {
    RunRanks(2, [&](comm::Communicator& pipeline) {
      const FakeMethod& mine = pipeline.rank() == 0 ? method : other;
      const Plan plan = FakePlan(kLayers, mine, 2);
      auto stage = FakeStage(plan, pipeline.rank(), mine);
      Executor executor(plan, *stage, pipeline, {});
      const auto batches = FakeMicroBatches(2);
      executor.TrainStep(batches);
    });
    ADD_FAILURE() << "no error";
  } catch (const StatusError& error) {
    EXPECT_EQ(KindOf(error.status()), ErrorKind::kBug) << error.what();
  }
}

}  // namespace
}  // namespace graft::sharding
