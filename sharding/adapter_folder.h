// Adapter folders as huggingface/peft writes them: adapter_config.json beside
// adapter_model.safetensors (interfaces.md 5). Used by train, eval, generate, export and inspect.
// What the config and the names mean is the method's business (adapters/adapter.h).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adapters/adapter.h"
#include "adapters/tensor_check.h"

namespace graft::sharding {

struct AdapterFolder {
  std::string path;
  nlohmann::json config;
  // float32 on CPU, sorted by name.
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
};

// Writes the folder complete or not at all: a hidden temp folder beside it is filled, synced and
// put in its place, where an older adapter folder is exchanged for it. Tensors of any device and
// floating dtype are stored as float32. Kind io; a folder that exists and is no adapter folder is
// left alone. One writer at a time (the run's lock).
absl::Status WriteAdapterFolder(const std::string& path, const nlohmann::json& config,
                                const std::vector<std::pair<std::string, torch::Tensor>>& tensors);

// Reads ours and huggingface/peft's. Untrusted: kind input naming file and field, also for a tensor
// that is no floating type or holds a value that is not finite.
absl::StatusOr<AdapterFolder> ReadAdapterFolder(const std::string& path);

// The parameters of `method` at the matched sites of the whole model, out of a folder that must be
// what it trains there: its config, then names, shapes and values. Kind input with the first
// mismatches.
absl::StatusOr<adapters::NamedTensors> FolderParameters(
    const AdapterFolder& folder, const adapters::Method& method,
    const std::vector<models::SiteSpec>& matched);

}  // namespace graft::sharding
