// manifest.json of a checkpoint: what the folder holds, with the hash of every file and of itself.
// Used by the checkpointer and by `inspect`. Reads untrusted bytes; links without LibTorch and
// knows nothing of ranks or tensors.
//
// Tree (reliability.md 1.1): <checkpoints>/step-00000200/{manifest.json, recipe.yaml,
// shards/*.safetensors}; the manifest is written last, without a valid one the folder does not
// exist for resume.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace graft::sharding {

inline constexpr char kManifestName[] = "manifest.json";
inline constexpr char kShardFolder[] = "shards";

struct CheckpointFile {
  std::string file;  // "recipe.yaml" or "shards/NAME.safetensors"
  int64_t bytes = 0;
  std::string sha256;
};

// Texts by key. Floats that must return exactly are C99 hex texts (HexFloat).
using TextMap = std::map<std::string, std::string>;

struct Manifest {
  int64_t step = 0;                   // finished steps
  int64_t updates = 0;                // applied updates
  int64_t skipped = 0;                // non-finite skips; step = updates + skipped
  int64_t start = 1;                  // number of the start of the run that wrote it
  TextMap fixed;                      // must be equal on resume (reliability.md 2.3)
  TextMap layout;                     // may differ, logged
  TextMap state;                      // what the trainer wants back
  std::vector<CheckpointFile> files;  // everything except the manifest, sorted
};

std::string ManifestText(const Manifest& manifest);
// Errors: kind input; another format, a version that is not 1 (names both), an unknown or missing
// key, a file name with a separator where none belongs, a wrong self hash.
absl::StatusOr<Manifest> ParseManifest(const std::string& text, const std::string& origin);

// The folder's manifest, after comparing size and hash of every file. Errors: kind input with the
// first difference, kind io.
absl::StatusOr<Manifest> ValidateCheckpoint(const std::string& folder);

// "step-00000200"; and back (nullopt for any other name).
std::string StepFolderName(int64_t step);
std::optional<int64_t> ParseStepFolderName(const std::string& name);
// Committed folders under `checkpoints`, newest first; empty when the folder does not exist.
absl::StatusOr<std::vector<std::string>> ListStepFolders(const std::string& checkpoints);

// Kind io naming the first keys whose values differ, with both.
absl::Status CompareFixed(const TextMap& saved, const TextMap& current, const std::string& origin);

}  // namespace graft::sharding
