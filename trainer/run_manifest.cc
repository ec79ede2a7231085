#include "trainer/run_manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/hash.h"
#include "base/recipe_yaml.h"
#include "base/status.h"
#include "base/yaml_tree.h"

namespace graft::trainer {
namespace {

// Where a checkpoint's adapter section may differ: by where values came from.
bool IsSource(const std::string& key) {
  return key == "adapter.init_from" || key == "adapter.setting" || key == "adapter.encoder.path";
}

// A setting counts by what it says, not by where it lies: sha256 of the file, or the path as the
// recipe has it when the file is gone. `value`: canonical YAML.
std::string ContentOfSetting(const std::string& value) {
  std::string path;
  ReadFieldList({{"setting", value}}, "adapter", [&](FieldVisitor& visitor) {
    visitor.Text({"setting", "path"}, &path);
  }).IgnoreError();
  const absl::StatusOr<std::string> digest = Sha256File(path, {.follow_links = true});
  return digest.ok() ? *digest : value;
}

bool IsFixed(const std::string& key) {
  static const std::vector<std::string> keys = {
      "run.seed",           "task.type",       "model.dtype",     "model.quantize",
      "data.shuffle",       "data.packing",    "data.row_length", "data.max_samples",
      "optim.name",         "optim.lr",        "optim.betas",     "optim.eps",
      "optim.weight_decay", "optim.clip_norm", "optim.schedule",  "optim.warmup_steps",
      "optim.global_batch"};
  return (absl::StartsWith(key, "adapter.") && !IsSource(key)) ||
         std::find(keys.begin(), keys.end(), key) != keys.end();
}

std::string ValueText(const YamlNode& node) {
  if (node.kind != YamlNode::Kind::kList) return node.text;
  std::vector<std::string> items;
  for (const YamlNode& item : node.items) items.push_back(ValueText(item));
  return absl::StrCat("[", absl::StrJoin(items, ", "), "]");
}

void Flatten(const YamlNode& node, const std::string& prefix, TextMap* texts) {
  for (const auto& [name, field] : node.fields) {
    const std::string key = prefix.empty() ? name : absl::StrCat(prefix, ".", name);
    if (field.kind == YamlNode::Kind::kMap) {
      Flatten(field, key, texts);
    } else {
      (*texts)[key] = ValueText(field);
    }
  }
}

// Every key of a resolved recipe.
absl::StatusOr<TextMap> RecipeTexts(const std::string& recipe_yaml) {
  const absl::StatusOr<YamlNode> root = ParseYaml(recipe_yaml, sharding::kRecipeName);
  if (!root.ok()) return InputError(std::string(root.status().message()));
  TextMap all;
  Flatten(*root, "", &all);
  return all;
}

}  // namespace

void StateToManifest(const RunState& state, const std::string& metric,
                     sharding::Manifest* manifest) {
  manifest->step = state.step;
  manifest->updates = state.updates;
  manifest->skipped = state.skipped;
  manifest->non_finite.consecutive = state.consecutive_skips;
  manifest->non_finite.recent.assign(state.recent_skips.begin(), state.recent_skips.end());
  manifest->eval.reset();
  if (!state.best_loss.has_value() && state.evaluations_since_best == 0) return;
  manifest->eval = sharding::EvalInfo{.metric = metric,
                                      .best = state.best_loss,
                                      .best_step = state.best_step,
                                      .since_best = state.evaluations_since_best,
                                      .ended_early = state.ended_early};
}

RunState StateFromManifest(const sharding::Manifest& manifest) {
  RunState state;
  state.step = manifest.step;
  state.updates = manifest.updates;
  state.skipped = manifest.skipped;
  state.consecutive_skips = manifest.non_finite.consecutive;
  state.recent_skips.assign(manifest.non_finite.recent.begin(), manifest.non_finite.recent.end());
  if (manifest.eval.has_value()) {
    state.best_loss = manifest.eval->best;
    state.best_step = manifest.eval->best_step;
    state.evaluations_since_best = manifest.eval->since_best;
    state.ended_early = manifest.eval->ended_early;
  }
  return state;
}

void RecipeToManifest(const Recipe& recipe, int64_t total_steps, sharding::Manifest* manifest) {
  const OptimSection& optim = recipe.optim;
  manifest->base.dtype = recipe.model.dtype;
  manifest->base.quantize = recipe.model.quantize;
  manifest->optimizer = {optim.name, optim.betas, optim.eps, optim.weight_decay, optim.clip_norm};
  manifest->schedule = {optim.schedule, optim.lr, optim.warmup_steps, total_steps};
  manifest->data.shuffle = recipe.data.shuffle;
  manifest->data.packing = recipe.data.packing;
  manifest->data.global_batch = optim.global_batch;
  manifest->rng.key = static_cast<uint64_t>(recipe.run.seed);
}

std::string AdapterConfigSha256(const Recipe& recipe,
                                const std::vector<std::pair<std::string, std::string>>& names,
                                const std::string& encoder_fingerprint) {
  nlohmann::json section = nlohmann::json::object(), parameters = nlohmann::json::object();
  for (const auto& [key, value] : ResolvedFields(recipe)) {
    if (absl::StartsWith(key, "adapter.") && !IsSource(key)) section[key] = value;
    if (key == "adapter.track_sensitivity" && value == "false") section.erase(key);
    if (key == "adapter.setting") section[key] = ContentOfSetting(value);
  }
  if (!encoder_fingerprint.empty()) section["adapter.encoder.path"] = encoder_fingerprint;
  for (const auto& [name, shape] : names) parameters[name] = shape;
  return Sha256Hex(nlohmann::json{{"adapter", section}, {"parameters", parameters}}.dump());
}

absl::StatusOr<TextMap> FixedRecipeTexts(const std::string& recipe_yaml) {
  GRAFT_ASSIGN_OR_RETURN(TextMap all, RecipeTexts(recipe_yaml));
  std::erase_if(all, [](const auto& entry) { return !IsFixed(entry.first); });
  return all;
}

std::string ResumeSha256(const TextMap& fixed) { return Sha256Hex(nlohmann::json(fixed).dump()); }

absl::StatusOr<TextMap> FixedTexts(const sharding::Manifest& manifest,
                                   const std::string& recipe_yaml) {
  GRAFT_ASSIGN_OR_RETURN(TextMap fixed, FixedRecipeTexts(recipe_yaml));
  // With a setting the parameters follow from it: that is the key to name.
  GRAFT_ASSIGN_OR_RETURN(const TextMap all, RecipeTexts(recipe_yaml));
  const char* const source =
      all.contains("adapter.setting") ? "adapter.setting" : "adapter.parameters";
  fixed[source] = manifest.adapter.config_sha256;
  fixed["data.fingerprint"] = manifest.data.fingerprint;
  fixed["data.tokenizer_sha256"] = manifest.data.tokenizer_sha256.value_or("null");
  fixed["model.fingerprint"] = manifest.base.fingerprint;
  fixed["model.model_type"] = manifest.base.model_type;
  // A constant rate does not depend on where the run ends; the others bend.
  if (manifest.schedule.name != "constant") {
    fixed["optim.total_steps"] = absl::StrCat(manifest.schedule.total_steps);
  }
  return fixed;
}

}  // namespace graft::trainer
