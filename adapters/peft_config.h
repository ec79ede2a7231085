// What adapter_config.json of every method has in common (methods.md 12), and the check of its
// type. The file itself is read and written by sharding/adapter_folder.h.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "adapters/adapter.h"

namespace graft::adapters {

// An adapter folder's content.
struct FolderContent {
  nlohmann::json config;
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
};

// huggingface/peft's common keys.
nlohmann::json CommonPeftConfig(const std::string& peft_type, const PeftContext& context);

// Error kind input when `peft_type` in the folder is not the one of the recipe's method.
absl::Status CheckPeftType(const nlohmann::json& config, const std::string& peft_type,
                           const std::string& method, const std::string& origin);

// Error kind input when the folder's text at `key` is not the value of the recipe's key of that
// name.
absl::Status CheckSameText(const nlohmann::json& config, const std::string& key,
                           const std::string& value, const std::string& origin);

// `target_modules` of sites: full names, because huggingface/peft matches list entries by suffix
// (methods.md 15).
nlohmann::json TargetModules(const std::vector<models::SiteSpec>& matched);
// `fan_in_fan_out`: whether one of them is a Conv1D.
bool HasFanInFanOut(const std::vector<models::SiteSpec>& matched);

// "base_model.model.{module}.{suffix}".
std::string PeftName(const std::string& module, const std::string& suffix);

}  // namespace graft::adapters
