// Between a run and a manifest: what the run's scalars are there, and what a run must share with a
// checkpoint to go on from it (reliability.md 1.2, 2.3). Pure. Used by the trainer and by `export`.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sharding/manifest.h"
#include "trainer/config.h"
#include "trainer/run_state.h"

namespace graft::trainer {

using sharding::TextMap;

// step, updates, skipped, non_finite, eval; and back.
void StateToManifest(const RunState& state, const std::string& metric,
                     sharding::Manifest* manifest);
RunState StateFromManifest(const sharding::Manifest& manifest);

// optimizer, schedule, rng, the recipe's part of base and data; texts and numbers of the recipe.
void RecipeToManifest(const Recipe& recipe, int64_t total_steps, sharding::Manifest* manifest);

// sha256 over the canonical JSON of the adapter section (without init_from and setting) and of the
// parameters with their shapes, `names` sorted by name. A prompt encoder counts by its content, not
// by where it lies.
std::string AdapterConfigSha256(const Recipe& recipe,
                                const std::vector<std::pair<std::string, std::string>>& names,
                                const std::string& encoder_fingerprint = "");

// The keys of a resolved recipe (the text of recipe.yaml) that a continued run must share, dotted,
// with their values. Kind input when the text is no recipe.
absl::StatusOr<TextMap> FixedRecipeTexts(const std::string& recipe_yaml);
// sha256 over them: RecipeInfo::resume_sha256.
std::string ResumeSha256(const TextMap& fixed);
// These and the manifest's share: fingerprints, adapter, and where the schedule bends its end.
absl::StatusOr<TextMap> FixedTexts(const sharding::Manifest& manifest,
                                   const std::string& recipe_yaml);

}  // namespace graft::trainer
