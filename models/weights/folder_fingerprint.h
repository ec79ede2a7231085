// What a model folder computes, as one number: for files that remember a model which lies
// elsewhere. No LibTorch.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace graft::models {

// sha256 over config.json and the hash64 of every weight. Reads them all. Kind input, io.
absl::StatusOr<std::string> FolderFingerprint(const std::string& folder, bool follow_links);

}  // namespace graft::models
