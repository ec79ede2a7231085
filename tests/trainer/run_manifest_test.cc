#include "trainer/run_manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/hash.h"
#include "base/status.h"

namespace graft::trainer {
namespace {

TEST(RunManifestTest, TheStateReturnsExactly) {
  RunState state;
  state.step = 9;
  state.updates = 7;
  state.skipped = 2;
  state.consecutive_skips = 2;
  state.recent_skips = {4, 5};
  state.best_loss = 0.1 + 0.2;
  state.best_step = 3;
  state.evaluations_since_best = 1;
  state.ended_early = true;
  sharding::Manifest manifest;
  StateToManifest(state, "loss", &manifest);
  const RunState back = StateFromManifest(manifest);
  EXPECT_EQ(back.step, 9);
  EXPECT_EQ(back.updates, 7);
  EXPECT_EQ(back.skipped, 2);
  EXPECT_EQ(back.recent_skips, state.recent_skips);
  EXPECT_EQ(back.best_loss, state.best_loss);
  EXPECT_EQ(back.best_step, 3);
  EXPECT_EQ(back.consecutive_skips, 2);
  EXPECT_EQ(back.evaluations_since_best, 1);
  EXPECT_TRUE(back.ended_early);
  StateToManifest(RunState(), "loss", &manifest);
  EXPECT_FALSE(manifest.eval.has_value());
}

TextMap FixedOf(const Recipe& recipe, const std::string& data = "d") {
  sharding::Manifest manifest;
  RecipeToManifest(recipe, 50, &manifest);
  manifest.base.fingerprint = "m";
  manifest.data.fingerprint = data;
  return ValueOrThrow(FixedTexts(manifest, RecipeYaml(recipe)));
}

Recipe SomeRecipe() {
  Recipe recipe;
  recipe.model.path = "model";
  recipe.adapter.method = "lora";
  recipe.adapter.init_from = "somewhere";
  recipe.method_fields = {{"rank", "8"}};
  return recipe;
}

TEST(FixedTextsTest, HoldsWhatAResumeMustShareAndNothingElse) {
  TextMap fixed = FixedOf(SomeRecipe());
  EXPECT_EQ(fixed["adapter.rank"], "8");
  EXPECT_EQ(fixed["model.fingerprint"], "m");
  for (const char* const key :
       {"optim.lr", "optim.global_batch", "run.seed", "data.shuffle", "data.packing", "model.dtype",
        "model.fingerprint", "data.fingerprint", "task.type", "optim.betas"}) {
    EXPECT_EQ(fixed.count(key), 1u) << key;
  }
  for (const char* const key :
       {"adapter.init_from", "optim.micro_batch", "optim.steps", "parallel.data",
        "checkpoint.every", "run.output", "model.path", "optim.total_steps"}) {
    EXPECT_EQ(fixed.count(key), 0u) << key;
  }
  Recipe bent = SomeRecipe();
  bent.optim.schedule = "cosine";
  EXPECT_EQ(FixedOf(bent)["optim.total_steps"], "50");
}

TEST(FixedTextsTest, EveryFixedKeyMakesADifference) {
  const TextMap before = FixedOf(SomeRecipe());
  EXPECT_EQ(FixedOf(SomeRecipe()), before);
  const auto changed = [&](const std::function<void(Recipe&)>& change) {
    Recipe recipe = SomeRecipe();
    change(recipe);
    return FixedOf(recipe) != before;
  };
  EXPECT_TRUE(changed([](Recipe& r) { r.run.seed = 1; }));
  EXPECT_TRUE(changed([](Recipe& r) { r.optim.lr = 2e-4; }));
  EXPECT_TRUE(changed([](Recipe& r) { r.optim.betas = {0.8, 0.999}; }));
  EXPECT_TRUE(changed([](Recipe& r) { r.optim.clip_norm = 0; }));
  EXPECT_TRUE(changed([](Recipe& r) { r.data.max_samples = 5; }));
  EXPECT_TRUE(changed([](Recipe& r) { r.model.dtype = "bfloat16"; }));
  EXPECT_TRUE(changed([](Recipe& r) { r.adapter.layers = {"0-3"}; }));
  EXPECT_TRUE(changed([](Recipe& r) { r.method_fields = {{"rank", "4"}}; }));
  EXPECT_NE(FixedOf(SomeRecipe(), "other data"), before);
  EXPECT_FALSE(changed([](Recipe& r) { r.parallel.pipeline = 2; }));
  EXPECT_FALSE(changed([](Recipe& r) { r.model.path = "/elsewhere"; }));
  EXPECT_FALSE(changed([](Recipe& r) { r.optim.steps = 500; }));
  EXPECT_FALSE(changed([](Recipe& r) { r.checkpoint.every = 7; }));
  EXPECT_FALSE(changed([](Recipe& r) { r.adapter.init_from = ""; }));
}

TEST(FixedTextsTest, TheAdapterIsKnownByKeysAndParameters) {
  const Recipe recipe = SomeRecipe();
  const std::string hash = AdapterConfigSha256(recipe, {{"a", "2,3"}});
  EXPECT_EQ(hash, AdapterConfigSha256(recipe, {{"a", "2,3"}}));
  EXPECT_NE(hash, AdapterConfigSha256(recipe, {{"a", "3,2"}}));
  Recipe other = recipe;
  other.method_fields = {{"rank", "4"}};
  EXPECT_NE(hash, AdapterConfigSha256(other, {{"a", "2,3"}}));
  other = recipe;
  other.adapter.init_from = "";
  EXPECT_EQ(hash, AdapterConfigSha256(other, {{"a", "2,3"}}));
}

}  // namespace
}  // namespace graft::trainer
