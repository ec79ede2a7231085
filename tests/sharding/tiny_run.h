// A run without a model: some parameters in a few units, whose values follow from the step, saved
// by the writer alone. For the fault tests of checkpoints, which fork and run under sanitizers.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/hash.h"
#include "base/status.h"
#include "sharding/checkpoint_folder.h"
#include "sharding/checkpoint_writer.h"

namespace graft::testing {

inline constexpr int kTinyLayers = 2;

// A manifest that is complete but for what the commit fills in.
inline sharding::Manifest TinyManifest(int64_t step) {
  sharding::Manifest manifest;
  manifest.graft_version = "1.2.3";
  manifest.run_id = std::string(32, 'a');
  manifest.start = 1;
  manifest.created = "2026-01-01T00:00:00Z";
  manifest.step = step;
  manifest.updates = step;
  manifest.base = {Sha256Hex("base"), "llama", kTinyLayers, 6, 11, "float32", "none"};
  manifest.adapter = {"red", Sha256Hex("adapter"), 0, 0};
  manifest.optimizer = {"adamw", {0.9, 0.999}, 1e-8, 0.0, 1.0};
  manifest.schedule = {"constant", 1e-3, 0, 100};
  manifest.data.fingerprint = Sha256Hex("data");
  manifest.data.num_samples = 21;
  manifest.data.global_batch = 4;
  manifest.data.cursor = 4 * step % 21;
  manifest.rng.key = 7;
  manifest.layout.split = {2};
  manifest.layout.schedule = "1f1b";
  manifest.layout.device = "cpu";
  manifest.layout.backend = "local";
  manifest.layout.cpu_isa = "AVX2";
  manifest.recipe.resume_sha256 = Sha256Hex("fixed");
  return manifest;
}

// Saves `step` into `checkpoints` as one rank does, all steps of the commit and retention. Every
// error ends it. `size`: numbers of each parameter.
inline absl::Status SaveTiny(const std::string& checkpoints, int64_t step, int64_t size = 5,
                             int64_t keep = 3) {
  using namespace sharding;  // NOLINT: a test's shorthand
  CommitJob job;
  job.checkpoints = checkpoints;
  job.temp = absl::StrCat(StepFolderName(step), kTempMark, "0001");
  job.manifest = TinyManifest(step);
  job.recipe = "run: {name: tiny}\n";
  GRAFT_RETURN_IF_ERROR(MakeTempFolder(checkpoints, job.temp));
  std::vector<float> numbers(static_cast<size_t>(3 * size));
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = static_cast<float>(step) + static_cast<float>(i) / 8;
  }
  uint64_t word = 0;
  for (int layer = 0; layer <= kTinyLayers; ++layer) {
    // The last one belongs to no layer.
    const std::string name = layer < kTinyLayers ? absl::StrCat("m.", layer, ".red_scale")
                                                 : std::string("prompt_embeddings");
    const ParameterShape parameter{name, {size}};
    job.expected.push_back(parameter);
    const StateToWrite state{parameter, word, numbers.data(), numbers.data() + size,
                             numbers.data() + 2 * size};
    word += static_cast<uint64_t>(size);
    GRAFT_ASSIGN_OR_RETURN(
        WrittenShard shard,
        WriteShard(checkpoints + "/" + job.temp, UnitOf(name, layer, kTinyLayers), {state}));
    job.shards.push_back(std::move(shard));
  }
  GRAFT_RETURN_IF_ERROR(CommitCheckpoint(job).status());
  return RemoveOldCheckpoints(checkpoints, keep, {});
}

// The step of the newest valid checkpoint, -1 when there is none.
inline int64_t NewestValid(const std::string& checkpoints) {
  const auto names = sharding::ListStepFolders(checkpoints);
  for (const std::string& name : ValueOrThrow(names)) {
    const auto manifest = sharding::ValidateCheckpoint(checkpoints + "/" + name);
    if (manifest.ok()) return manifest->step;
  }
  return -1;
}

}  // namespace graft::testing
