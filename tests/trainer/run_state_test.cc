#include "trainer/run_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/testing/status_matchers.h"

namespace graft::trainer {
namespace {

using testing::FailsWith;
using testing::IsOk;

TEST(RunStateTest, SixSkipsInARowAreTooMany) {
  RunState state;
  for (int i = 0; i < 5; ++i) state.CountStep(true);
  EXPECT_FALSE(state.TooManySkips());
  state.CountStep(true);
  EXPECT_TRUE(state.TooManySkips());
  EXPECT_EQ(state.step, 6);
  EXPECT_EQ(state.skipped, 6);
  EXPECT_EQ(state.updates, 0);
}

TEST(RunStateTest, ElevenSkipsWithinAThousandStepsAreTooManyAndOldOnesAreForgotten) {
  RunState state;
  const auto run = [&state](int steps) {
    for (int i = 0; i < steps; ++i) state.CountStep(i % 50 == 0);
  };
  run(500);
  EXPECT_EQ(state.recent_skips.size(), 10u);
  EXPECT_FALSE(state.TooManySkips());
  RunState other = state;
  other.CountStep(true);
  EXPECT_TRUE(other.TooManySkips());
  for (int i = 0; i < 1000; ++i) state.CountStep(false);
  EXPECT_TRUE(state.recent_skips.empty());
  EXPECT_EQ(state.skipped, 10);
}

TEST(RunStateTest, OnlyABetterFiniteLossIsTheBest) {
  RunState state;
  state.step = 3;
  EXPECT_FALSE(state.CountEvaluation(std::numeric_limits<double>::quiet_NaN()));
  EXPECT_TRUE(state.CountEvaluation(2.0));
  EXPECT_FALSE(state.CountEvaluation(2.0));
  EXPECT_FALSE(state.CountEvaluation(2.5));
  EXPECT_EQ(state.evaluations_since_best, 2);
  EXPECT_EQ(state.best_step, 3);
  EXPECT_TRUE(state.CountEvaluation(1.0));
  EXPECT_EQ(state.evaluations_since_best, 0);
}

TEST(RunStateTest, TextsReturnExactly) {
  RunState state;
  state.consecutive_skips = 2;
  state.recent_skips = {4, 5};
  state.best_loss = 0.1 + 0.2;
  state.best_step = 3;
  state.evaluations_since_best = 1;
  state.ended_early = true;
  RunState back;
  ASSERT_THAT(ReadStateTexts(StateTexts(state), "manifest.json", &back), IsOk());
  EXPECT_EQ(back.recent_skips, state.recent_skips);
  EXPECT_EQ(back.best_loss, state.best_loss);
  EXPECT_EQ(back.best_step, 3);
  EXPECT_EQ(back.consecutive_skips, 2);
  EXPECT_EQ(back.evaluations_since_best, 1);
  EXPECT_TRUE(back.ended_early);
}

TEST(RunStateTest, DamagedTextsNameTheKey) {
  RunState state;
  TextMap texts = StateTexts(state);
  texts["best_step"] = "soon";
  EXPECT_THAT(ReadStateTexts(texts, "manifest.json", &state),
              FailsWith(ErrorKind::kInput, "manifest.json: state.best_step"));
  texts = StateTexts(state);
  texts.erase("consecutive_skips");
  EXPECT_THAT(ReadStateTexts(texts, "manifest.json", &state),
              FailsWith(ErrorKind::kInput, "consecutive_skips"));
}

TEST(FixedTextsTest, HoldsWhatAResumeMustShareAndNothingElse) {
  Recipe recipe;
  recipe.adapter.method = "lora";
  recipe.adapter.init_from = "somewhere";
  recipe.method_fields = {{"rank", "8"}};
  const RunInputs inputs = {.model = "m", .data = "d", .tokenizer = "t", .total_steps = 50};
  TextMap fixed = FixedTexts(recipe, inputs);
  EXPECT_EQ(fixed["adapter.rank"], "8");
  for (const char* const key : {"optim.lr", "optim.global_batch", "run.seed", "data.shuffle",
                                "data.packing", "model.dtype", "model.fingerprint", "task.type"}) {
    EXPECT_EQ(fixed.count(key), 1u) << key;
  }
  for (const char* const key :
       {"adapter.init_from", "optim.micro_batch", "optim.steps", "parallel.data",
        "checkpoint.every", "run.output", "model.path", "optim.total_steps"}) {
    EXPECT_EQ(fixed.count(key), 0u) << key;
  }
  recipe.optim.schedule = "cosine";
  EXPECT_EQ(FixedTexts(recipe, inputs)["optim.total_steps"], "50");
  EXPECT_EQ(LayoutTexts(recipe, 3)["threads"], "3");
  EXPECT_EQ(LayoutTexts(recipe, 3).count("parallel.pipeline"), 1u);
}

}  // namespace
}  // namespace graft::trainer
