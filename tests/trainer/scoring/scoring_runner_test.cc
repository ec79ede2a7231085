// Results of the runner on one stage and on several, what it really runs, and what it says of
// numbers that are not finite. That the numbers are right is proved against HF PEFT
// (tests/oracle/score_test.py).
#include "trainer/scoring/scoring_runner.h"

#include <map>
#include <mutex>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"
#include "tests/trainer/training_run.h"
#include "trainer/open_data.h"

namespace graft::testing {
namespace {

using models::Role;
using trainer::ScoreTask;
using trainer::ScoringRunner;
using trainer::WorkItem;

// Counts the rows that reach a layer.
class RowCounter : public models::SiteHook {
 public:
  torch::Tensor EditOutput(const models::SiteInput&, torch::Tensor y,
                           models::SiteContext&) override {
    rows += y.size(0);
    return y;
  }
  int64_t rows = 0;
};

class ScoringRunnerTest : public ::testing::Test {
 protected:
  // Values as a trained adapter has them: B is not 0.
  static void FillAdapter(trainer::LoadedModel& model) {
    at::NoGradGuard no_grad;
    for (const auto& parameter : model.adapters().parameters()) {
      uint64_t state = std::hash<std::string>()(parameter.name);
      for (int64_t i = 0; i < parameter.value.numel(); ++i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        parameter.value.data_ptr<float>()[i] =
            static_cast<float>(state >> 40) / static_cast<float>(1 << 24) * 0.1f - 0.05f;
      }
    }
  }

  struct Outcome {
    std::vector<absl::StatusOr<std::string>> results;  // of the last stage
    int64_t layer_forwards = 0;                        // of all stages
    int64_t layer_rows = 0;                            // counted by hooks
    int64_t num_layers = 0;
    ScoreTask task;
    std::vector<WorkItem> items;
  };

  // All items of `method` on `pipeline` stages; `prepare` may change the model first.
  Outcome Compute(const std::string& method, int pipeline,
                  const std::function<void(trainer::LoadedModel&)>& prepare = {}) {
    trainer::Recipe recipe = run_.NewRecipe("score");
    recipe.parallel.pipeline = pipeline;
    Outcome outcome;
    std::mutex mutex;
    const absl::Status status =
        TrainingRun::OnRanks(recipe, [&](comm::World& world) -> absl::Status {
          GRAFT_ASSIGN_OR_RETURN(const auto data, trainer::OpenData(recipe, recipe.data.eval,
                                                                    "data.eval", world.all()));
          GRAFT_ASSIGN_OR_RETURN(
              const auto model,
              trainer::LoadedModel::Load(recipe, world, trainer::WorkShapeOf(*data, 0)));
          FillAdapter(*model);
          if (prepare) prepare(*model);
          const ScoreTask task = TaskOf(method, *data, *model);
          GRAFT_ASSIGN_OR_RETURN(const auto weights,
                                 trainer::OpenRecipeWeights(recipe, model->config()));
          GRAFT_ASSIGN_OR_RETURN(const auto runner,
                                 ScoringRunner::Create(task, *data, *model, *weights));
          models::Backbone& backbone = model->stage().backbone(0);
          const auto counter = std::make_shared<RowCounter>();
          for (int layer = backbone.range().first_layer; layer < backbone.range().end_layer();
               ++layer) {
            backbone.sites().Add({layer, Role::kLayerIn}, counter);
          }
          std::vector<absl::StatusOr<std::string>> results;
          for (const WorkItem& item : trainer::ScoreItems(task))
            results.push_back(runner->Run(item, [] {}));
          const std::lock_guard<std::mutex> lock(mutex);
          outcome.layer_forwards += runner->layer_forwards();
          outcome.layer_rows += counter->rows;
          if (!model->is_last_stage()) return absl::OkStatus();
          outcome.results = std::move(results);
          outcome.num_layers = task.num_layers;
          outcome.items = trainer::ScoreItems(task);
          outcome.task = task;
          return absl::OkStatus();
        });
    EXPECT_THAT(status, IsOk());
    return outcome;
  }

  static ScoreTask TaskOf(const std::string& method, const trainer::Dataset& data,
                          const trainer::LoadedModel& model) {
    ScoreTask task;
    task.method = method;
    task.modules = model.matched();
    std::sort(task.modules.begin(), task.modules.end(),
              [](const auto& a, const auto& b) { return a.id < b.id; });
    task.num_layers = static_cast<int>(model.config().num_layers);
    for (int64_t i = 0; i < 7; ++i) {
      task.tokens.push_back(data.total_tokens(i));
      task.trained_tokens.push_back(data.trained_tokens(i));
    }
    task.grid = {"float32", 1, /*shard_samples=*/4, /*layer_block=*/3, /*micro_batch=*/2};
    return task;
  }

  TrainingRun run_;
};

// Item by item the same bytes, whichever stage a block begins and ends on.
TEST_F(ScoringRunnerTest, StagesChangeNoBit) {
  for (const char* method : {"ab", "taylor", "lora_drop", "keep_one"}) {
    const Outcome one = Compute(method, 1), two = Compute(method, 2), four = Compute(method, 4);
    ASSERT_FALSE(one.results.empty());
    ASSERT_EQ(one.results.size(), two.results.size());
    for (size_t i = 0; i < one.results.size(); ++i) {
      ASSERT_THAT(one.results[i], IsOk());
      EXPECT_TRUE(*one.results[i] == *two.results[i]) << method << ", item " << i;
      EXPECT_TRUE(*one.results[i] == *four.results[i]) << method << ", item " << i;
    }
    const auto measured = trainer::JoinResults(one.task, one.items, {[&] {
                                                 std::vector<std::string> results;
                                                 for (const auto& result : one.results)
                                                   results.push_back(*result);
                                                 return results;
                                               }()});
    ASSERT_THAT(measured, IsOk());
    ASSERT_TRUE(measured->base_loss.has_value());
    EXPECT_GT(*measured->base_loss, 1.0);
  }
}

// The rows that hooks count are those of the written cost, and the saving is real.
TEST_F(ScoringRunnerTest, RunsAsManyLayersAsPlanned) {
  const Outcome outcome = Compute("loo", 1);
  int64_t planned = 0, planned_rows = 0;
  for (const WorkItem& item : outcome.items) {
    const int64_t forwards = trainer::LayerForwards(outcome.task, item);
    planned += forwards;
    int64_t tokens = 0;
    for (int64_t n = 0; n < item.num_samples; ++n)
      tokens += outcome.task.tokens[static_cast<size_t>(item.first_sample + n)];
    planned_rows += forwards / item.num_samples * tokens;
  }
  EXPECT_EQ(outcome.layer_forwards, planned);
  EXPECT_EQ(outcome.layer_rows, planned_rows);
  EXPECT_LT(planned, trainer::NaiveLayerForwards(outcome.task));
  EXPECT_EQ(Compute("loo", 2).layer_forwards, planned) << "stages share the work, none repeats it";
}

TEST_F(ScoringRunnerTest, ANumberThatIsNotFiniteNamesSampleAndModule) {
  const auto spoil = [](trainer::LoadedModel& model) {
    at::NoGradGuard no_grad;
    for (const auto& parameter : model.adapters().parameters()) {
      if (parameter.name.find("layers.1.mlp.up_proj.lora_B") == std::string::npos) continue;
      parameter.value.fill_(std::numeric_limits<float>::infinity());
    }
  };
  for (const int pipeline : {1, 2}) {
    const Outcome ablation = Compute("keep_one", pipeline, spoil);
    EXPECT_THAT(ablation.results[0],
                FailsWith(ErrorKind::kNumeric, "the loss, samples from id 1000"));
    EXPECT_THAT(ablation.results[2], FailsWith(ErrorKind::kNumeric, "sample id 1000"));
    const Outcome taylor = Compute("taylor", pipeline, spoil);
    EXPECT_THAT(taylor.results[1], FailsWith(ErrorKind::kNumeric, "sample id 1004"));
  }
}

}  // namespace
}  // namespace graft::testing
