// Checkpoints as folders on disk (reliability.md 1.1, 1.4): their names, and the checks that a
// folder must pass before anything is taken from it. Used by the checkpointer, `inspect`, `export`
// and the fault tests. Reads only. Links without LibTorch and MPI.
//
// <checkpoints>/step-00000200/{manifest.json, recipe.yaml, shards/*.safetensors}; the manifest is
// written last, without a valid one the folder does not exist for resume.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/weights/safetensors.h"
#include "sharding/manifest.h"

namespace graft::sharding {

inline constexpr char kTempMark[] = ".tmp-";
inline constexpr char kBadMark[] = ".bad-";
inline constexpr char kTrashPrefix[] = ".trash-";

// "step-00000200"; and back (nullopt for any other name).
std::string StepFolderName(int64_t step);
std::optional<int64_t> ParseStepFolderName(const std::string& name);
// Committed folders under `checkpoints`, newest first; empty when the folder does not exist.
absl::StatusOr<std::vector<std::string>> ListStepFolders(const std::string& checkpoints);

// The folder's manifest by itself. Kind input when it is not valid or of another step than the
// folder's name says; kind io when it cannot be read.
absl::StatusOr<Manifest> ReadManifest(const std::string& folder);
// Size and sha256 of one listed file.
absl::Status CheckFile(const std::string& folder, const CheckpointFile& file);
// CheckFile, then: the header says what the manifest says, every number is finite, no second
// moment is negative, every hash64 fits. Returns the open file, whose bytes were checked.
absl::StatusOr<std::shared_ptr<const models::SafetensorsFile>> CheckShard(
    const std::string& folder, const Manifest& manifest, const CheckpointFile& file);

// Everything. Kind input with the first difference, kind io.
absl::StatusOr<Manifest> ValidateCheckpoint(const std::string& folder);

// What became of a folder that is not valid: its name is now `name`.bad-K.
absl::StatusOr<std::string> Quarantine(const std::string& checkpoints, const std::string& name);

}  // namespace graft::sharding
