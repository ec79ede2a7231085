#include "trainer/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/testing/status_matchers.h"
#include "tests/trainer/training_run.h"

namespace graft::trainer {
namespace {

using testing::FailsWith;
using testing::IsOk;
using testing::Json;
using testing::TrainingRun;

struct Layout {
  int64_t data, pipeline;
  std::string schedule;
  int64_t micro_batch;
};

void ExpectSameRun(const TrainingRun& run, const std::string& output,
                   const std::string& reference) {
  const std::vector<Json> actual = run.Metrics(output, "train"),
                          expected = run.Metrics(reference, "train");
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const double loss = expected[i]["loss"], norm = expected[i]["grad_norm"];
    EXPECT_NEAR(actual[i]["loss"].get<double>(), loss, 1e-6 * loss) << output << " step " << i + 1;
    EXPECT_NEAR(actual[i]["grad_norm"].get<double>(), norm, 1e-4 * norm)
        << output << " step " << i + 1;
    for (const char* const key : {"samples", "tokens", "trained_tokens"})
      EXPECT_EQ(actual[i][key], expected[i][key]) << key;
  }
}

class LayoutTest : public ::testing::TestWithParam<const char*> {};

TEST_P(LayoutTest, EveryLayoutTrainsTheSameRun) {
  TrainingRun run;
  const auto train = [&](const Layout& layout, const std::string& output) {
    Recipe recipe = run.NewRecipe(output);
    recipe.adapter.method = GetParam();
    if (recipe.adapter.method != "lora") recipe.method_fields.clear();
    recipe.parallel.data = layout.data;
    recipe.parallel.pipeline = layout.pipeline;
    recipe.parallel.schedule = layout.schedule;
    recipe.optim.micro_batch = layout.micro_batch;
    recipe.optim.schedule = "linear";
    recipe.optim.warmup_steps = 1;
    ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  };
  train({1, 1, "1f1b", 1}, "reference");
  ASSERT_EQ(run.Losses("reference").size(), 6u);
  EXPECT_NE(run.Losses("reference")[1], run.Losses("reference")[5]);
  const Layout layouts[] = {{1, 1, "1f1b", 3},  {2, 1, "1f1b", 1},        {1, 2, "1f1b", 1},
                            {1, 2, "gpipe", 2}, {1, 2, "interleaved", 1}, {2, 2, "1f1b", 3},
                            {1, 4, "1f1b", 1}};
  for (const Layout& layout : layouts) {
    const std::string output = absl::StrCat("out-", layout.data, "x", layout.pipeline, "-",
                                            layout.schedule, "-", layout.micro_batch);
    train(layout, output);
    ExpectSameRun(run, output, "reference");
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, LayoutTest, ::testing::Values("lora", "red"));

TEST(TrainerTest, LossIsTheMeanOverTheTrainedTokensOfTheGlobalBatch) {
  TrainingRun run;
  Recipe recipe = run.NewRecipe("out");
  recipe.data.shuffle = false;
  recipe.optim.steps = 1;
  recipe.optim.warmup_steps = 1;
  recipe.optim.global_batch = 21;  // the whole data set
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  // B of LoRA begins at zero, so the first loss is the evaluation loss of the bare model.
  EvalResult eval;
  const absl::Status status = TrainingRun::OnRanks(recipe, [&](comm::World& world) -> absl::Status {
    GRAFT_ASSIGN_OR_RETURN(const auto data, Dataset::Open(run.data().path()));
    GRAFT_ASSIGN_OR_RETURN(const auto model,
                           LoadedModel::Load(recipe, world, {.sequence_length = 32}));
    eval = Evaluate(*model, *data, data->size(), 4);
    return absl::OkStatus();
  });
  ASSERT_THAT(status, IsOk());
  EXPECT_NEAR(run.Losses("out")[0], eval.loss, 1e-6 * eval.loss);
  EXPECT_EQ(run.Metrics("out", "train")[0]["trained_tokens"], eval.trained_tokens);
  EXPECT_EQ(eval.samples, 21);
}

TEST(TrainerTest, StopAndResumeEqualsNoStopBitwise) {
  TrainingRun run;
  for (const int64_t pipeline : {1, 2}) {
    Recipe recipe = run.NewRecipe(absl::StrCat("whole", pipeline));
    recipe.parallel.pipeline = pipeline;
    recipe.checkpoint.every = 2;
    ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
    recipe.run.output = run.outputs().Path(absl::StrCat("parts", pipeline));
    recipe.optim.steps = 3;
    ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
    recipe.optim.steps = 6;
    ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
    EXPECT_EQ(run.Losses(absl::StrCat("parts", pipeline)),
              run.Losses(absl::StrCat("whole", pipeline)));
    EXPECT_EQ(run.AdapterBytes(absl::StrCat("parts", pipeline)),
              run.AdapterBytes(absl::StrCat("whole", pipeline)));
    const std::vector<Json> resumes = run.Metrics(absl::StrCat("parts", pipeline), "resume");
    ASSERT_EQ(resumes.size(), 1u);
    EXPECT_EQ(resumes[0]["step"], 3);
    EXPECT_EQ(resumes[0]["from"], "step-00000003");
  }
}

TEST(TrainerTest, ResumeOnAnotherLayoutGoesOnWithTheSameNumbers) {
  TrainingRun run;
  Recipe recipe = run.NewRecipe("whole");
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  recipe.run.output = run.outputs().Path("moved");
  recipe.optim.steps = 3;
  recipe.parallel.pipeline = 2;
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  recipe.optim.steps = 6;
  recipe.parallel.pipeline = 1;
  recipe.parallel.data = 2;
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  ExpectSameRun(run, "moved", "whole");
}

TEST(TrainerTest, CrashAfterACheckpointRepeatsTheLostStepsAndCutsTheMetrics) {
  TrainingRun run;
  Recipe recipe = run.NewRecipe("out");
  recipe.checkpoint.every = 4;
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  const std::vector<double> losses = run.Losses("out");
  ASSERT_THAT(RemoveTree(run.outputs().Path("out/checkpoints/step-00000006")), IsOk());
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  EXPECT_EQ(run.Losses("out"), losses);
  EXPECT_EQ(run.Metrics("out", "resume").back()["step"], 4);
}

TEST(TrainerTest, AFinishedRunTrainsNoFurtherAndNeverRefusesItsFolder) {
  TrainingRun run;
  Recipe recipe = run.NewRecipe("out");
  recipe.optim.steps = 2;
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  const std::string adapter = run.AdapterBytes("out");
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  EXPECT_EQ(run.Losses("out").size(), 2u);
  EXPECT_EQ(run.AdapterBytes("out"), adapter);
  recipe.checkpoint.resume = "never";
  EXPECT_THAT(TrainingRun::Train(recipe), FailsWith(ErrorKind::kIo, "checkpoint.resume"));
  recipe.checkpoint.resume = "auto";
  recipe.optim.lr = 0.5;
  EXPECT_THAT(TrainingRun::Train(recipe), FailsWith(ErrorKind::kIo, "optim.lr"));
}

TEST(TrainerTest, RunFolderHasTheDocumentedFiles) {
  TrainingRun run;
  Recipe recipe = run.NewRecipe("out");
  recipe.optim.steps = 2;
  recipe.parallel.pipeline = 2;
  recipe.eval.every = 2;
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  for (const char* const file : {"recipe.yaml", "lock", "adapter/adapter_config.json",
                                 "checkpoints/step-00000002/manifest.json"}) {
    EXPECT_TRUE(PathExists(run.outputs().Path("out/") + file)) << file;
  }
  const Json start = run.Metrics("out", "run").at(0);
  EXPECT_EQ(start["schema"], 1);
  EXPECT_EQ(start["layout"]["pipeline"], 2);
  EXPECT_EQ(start["stages"].size(), 2u);
  EXPECT_EQ(start["stages"][1]["end_layer"], 4);
  EXPECT_GT(start["stages"][0]["bytes"].get<int64_t>(), 0);
  EXPECT_EQ(start["total_parameters"].get<int64_t>() - start["trainable_parameters"].get<int64_t>(),
            164416);
  const Json step = run.Metrics("out", "train").at(1);
  EXPECT_GT(step["tokens_per_second"].get<double>(), 0);
  EXPECT_GT(step["peak_memory_bytes"].get<int64_t>(), 1 << 20);
  EXPECT_GE(step["bubble_fraction"].get<double>(), 0);
  EXPECT_LT(step["bubble_fraction"].get<double>(), 1);
  EXPECT_GT(step["communication_seconds"].get<double>(), 0);
  EXPECT_EQ(run.Metrics("out", "eval").at(0)["step"], 2);
  EXPECT_NEAR(run.Metrics("out", "eval")[0]["perplexity"],
              std::exp(run.Metrics("out", "eval")[0]["loss"].get<double>()), 1e-9);
  EXPECT_EQ(run.Metrics("out", "checkpoint").at(0)["step"], 2);
}

TEST(TrainerTest, EndsEarlyAndKeepsTheBestAdapter) {
  TrainingRun run;
  Recipe recipe = run.NewRecipe("out");
  recipe.optim.lr = 0.5;  // soon far worse than at the start
  recipe.optim.steps = 40;
  recipe.eval.every = 1;
  recipe.eval.patience = 2;
  recipe.parallel.data = 2;
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  const std::vector<Json> evals = run.Metrics("out", "eval");
  ASSERT_LT(evals.size(), 40u);
  size_t best = 0;
  for (size_t i = 0; i < evals.size(); ++i) {
    if (evals[i]["loss"].get<double>() < evals[best]["loss"].get<double>()) best = i;
  }
  EXPECT_EQ(best + 3, evals.size());
  EXPECT_EQ(run.AdapterBytes("out"), run.AdapterBytes("out", "adapter-best"));
  // It is complete: another start adds nothing.
  ASSERT_THAT(TrainingRun::Train(recipe), IsOk());
  EXPECT_EQ(run.Metrics("out", "eval").size(), evals.size());

  // The kept adapter has the loss of the best evaluation.
  Recipe check = run.NewRecipe("check");
  check.adapter.init_from = run.outputs().Path("out/adapter");
  double loss = 0;
  ASSERT_THAT(TrainingRun::OnRanks(
                  check,
                  [&](comm::World& world) -> absl::Status {
                    GRAFT_ASSIGN_OR_RETURN(const auto data, Dataset::Open(run.data().path()));
                    GRAFT_ASSIGN_OR_RETURN(
                        const auto model, LoadedModel::Load(check, world, {.sequence_length = 32}));
                    loss = Evaluate(*model, *data, data->size(), 4).loss;
                    return absl::OkStatus();
                  }),
              IsOk());
  EXPECT_NEAR(loss, evals[best]["loss"], 1e-6 * loss);
}

TEST(TrainerTest, StepsThatAreNotFiniteEndTheRunWithoutASave) {
  TrainingRun run;
  Recipe recipe = run.NewRecipe("out");
  recipe.optim.lr = 1e30;
  recipe.optim.steps = 20;
  recipe.parallel.pipeline = 2;
  EXPECT_THAT(TrainingRun::Train(recipe), FailsWith(ErrorKind::kNumeric, "6 steps in a row"));
  const std::vector<Json> steps = run.Metrics("out", "train");
  EXPECT_EQ(steps.back()["skipped"], true);
  EXPECT_FALSE(PathExists(run.outputs().Path("out/adapter")));
  EXPECT_FALSE(PathExists(run.outputs().Path("out/checkpoints/LATEST")));
}

TEST(TrainerTest, AllRanksGetTheErrorOfASetUpStep) {
  TrainingRun run;
  Recipe recipe = run.NewRecipe("out");
  recipe.parallel.data = 2;
  recipe.data.train = run.outputs().Path("absent");
  EXPECT_THAT(TrainingRun::Train(recipe), FailsWith(ErrorKind::kInput, "dataset.json"));
  recipe = run.NewRecipe("out");
  recipe.task.type = "classification";
  EXPECT_THAT(TrainingRun::Train(recipe), FailsWith(ErrorKind::kRecipe, "task.type"));
  recipe = run.NewRecipe("out");
  recipe.eval.every = 1;
  recipe.data.eval.clear();
  EXPECT_THAT(TrainingRun::Train(recipe), FailsWith(ErrorKind::kRecipe, "data.eval"));
}

}  // namespace
}  // namespace graft::trainer
