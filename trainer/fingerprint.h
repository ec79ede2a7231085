// What a model is, as a checkpoint remembers it, so that a run is not continued on another one.
// Used by the trainer on rank 0.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "trainer/config.h"

namespace graft::trainer {

// SHA-256 over config.json and name, dtype and shape of every tensor of the folder; of a synthetic
// model its shape's name and the seed. It does not read the values: a folder with the same tensors
// but other values has the same fingerprint.
absl::StatusOr<std::string> ModelFingerprint(const Recipe& recipe);

}  // namespace graft::trainer
