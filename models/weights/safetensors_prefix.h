// What stands in front of the data of a safetensors file. For writers that put the file down
// themselves (checkpoint shards); everybody else calls WriteSafetensors. No LibTorch.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/weights/safetensors.h"

namespace graft::models {

// Sorts `tensors` by name, the order in which their data follow, and returns the header's length
// and the header, padded with spaces to 8 bytes. Kind bug when a name occurs twice; `path` opens
// the message.
absl::StatusOr<std::string> SafetensorsPrefix(const std::string& path,
                                              std::vector<TensorToWrite>* tensors,
                                              const std::map<std::string, std::string>& metadata);
int64_t BytesOf(const TensorToWrite& tensor);

}  // namespace graft::models
