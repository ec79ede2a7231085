#include "adapters/peft_config.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::adapters {

nlohmann::json CommonPeftConfig(const std::string& peft_type, const PeftContext& context) {
  // The version whose key names and meanings this file follows.
  constexpr const char* kPeftVersion = "0.21.0";
  return {
      {"auto_mapping", nullptr},
      {"base_model_name_or_path", context.base_model_name_or_path},
      {"inference_mode", true},
      {"peft_type", peft_type},
      {"peft_version", kPeftVersion},
      {"revision", nullptr},
      {"task_type", context.task_type},
  };
}

absl::Status CheckPeftType(const nlohmann::json& config, const std::string& peft_type,
                           const std::string& method, const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const std::string found, GetString(config, "peft_type", origin));
  if (found == peft_type) return absl::OkStatus();
  return InputError(absl::StrCat(origin, ": peft_type is \"", Printable(found),
                                 "\", but adapter.method `", method, "` reads \"", peft_type,
                                 "\""));
}

absl::Status CheckSameText(const nlohmann::json& config, const std::string& key,
                           const std::string& value, const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const std::string found, GetString(config, key, origin));
  if (found == value) return absl::OkStatus();
  return InputError(absl::StrCat(origin, ": ", key, " is \"", Printable(found),
                                 "\", the recipe's is \"", value, "\""));
}

nlohmann::json TargetModules(const std::vector<models::SiteSpec>& matched) {
  nlohmann::json modules = nlohmann::json::array();
  for (const models::SiteSpec& site : matched) {
    // The roles of a shared module stand side by side.
    if (modules.empty() || modules.back() != site.module) modules.push_back(site.module);
  }
  return modules;
}

bool HasFanInFanOut(const std::vector<models::SiteSpec>& matched) {
  return std::any_of(matched.begin(), matched.end(),
                     [](const models::SiteSpec& site) { return site.fan_in_fan_out; });
}

std::string PeftName(const std::string& module, const std::string& suffix) {
  return absl::StrCat("base_model.model.", module, ".", suffix);
}

}  // namespace graft::adapters
