#include "trainer/scoring/sensitivity_file.h"

#include <limits>
#include <map>
#include <optional>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/json_writer.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::trainer {
namespace {

using nlohmann::json;

constexpr char kFormat[] = "graft-sensitivity";
constexpr int64_t kMaxLayers = 1'000'000;

absl::StatusOr<adapters::ModuleScore> ReadModule(const json& entry, const std::string& origin) {
  GRAFT_RETURN_IF_ERROR(CheckKnownKeys(entry, {"layer", "role", "score"}, origin));
  GRAFT_ASSIGN_OR_RETURN(const int64_t layer, GetInt(entry, "layer", 0, kMaxLayers, origin));
  GRAFT_ASSIGN_OR_RETURN(const std::string role, GetString(entry, "role", origin));
  const std::optional<models::Role> parsed = models::ParseRole(role);
  if (!parsed || !models::IsLinear(*parsed)) {
    return InputError(absl::StrCat(origin, ": role: found \"", Printable(role),
                                   "\", must be the role of a linear, as attn.q"));
  }
  adapters::ModuleScore module;
  module.site = {static_cast<int>(layer), *parsed};
  GRAFT_ASSIGN_OR_RETURN(module.score,
                         GetReal(entry, "score", 0, std::numeric_limits<double>::max(), origin));
  return module;
}

}  // namespace

std::string SensitivityPath(const std::string& adapter_folder) {
  std::string folder = adapter_folder;
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  return JoinPath(FolderOf(folder), "sensitivity.json");
}

std::string SensitivityText(const Sensitivity& sensitivity) {
  nlohmann::ordered_json modules = nlohmann::ordered_json::array();
  for (const adapters::ModuleScore& module : sensitivity.modules) {
    modules.push_back({{"layer", module.site.layer},
                       {"role", models::RoleName(module.site.role)},
                       {"score", module.score}});
  }
  return WriteJson({{"format", kFormat},
                    {"version", 1},
                    {"adapter_sha256", sensitivity.adapter_sha256},
                    {"modules", modules}});
}

absl::StatusOr<Sensitivity> ReadSensitivity(const std::string& path) {
  GRAFT_ASSIGN_OR_RETURN(const json file, ReadJsonFile(path, {.max_bytes = int64_t{16} << 20},
                                                       /*follow_links=*/true));
  const std::string origin = Printable(path, 512);
  GRAFT_RETURN_IF_ERROR(
      CheckKnownKeys(file, {"format", "version", "adapter_sha256", "modules"}, origin));
  GRAFT_ASSIGN_OR_RETURN(const std::string format, GetString(file, "format", origin));
  if (format != kFormat) {
    return InputError(absl::StrCat(origin, ": format: found \"", Printable(format),
                                   "\", must be \"", kFormat, "\""));
  }
  GRAFT_RETURN_IF_ERROR(GetInt(file, "version", 1, 1, origin).status());
  Sensitivity sensitivity;
  GRAFT_ASSIGN_OR_RETURN(sensitivity.adapter_sha256, GetString(file, "adapter_sha256", origin));
  GRAFT_ASSIGN_OR_RETURN(const json* modules, GetArray(file, "modules", origin));
  for (size_t i = 0; i < modules->size(); ++i) {
    GRAFT_ASSIGN_OR_RETURN(adapters::ModuleScore module,
                           ReadModule((*modules)[i], absl::StrCat(origin, ": modules[", i, "]")));
    sensitivity.modules.push_back(std::move(module));
  }
  return sensitivity;
}

absl::Status ScoreSensitivity(const std::string& adapter_folder,
                              std::vector<adapters::ModuleScore>* modules) {
  const std::string path = SensitivityPath(adapter_folder);
  if (!PathExists(path)) {
    return InputError(absl::StrCat(path,
                                   ": missing; score.method sensitivity needs an adapter that "
                                   "was trained with adapter.track_sensitivity: true"));
  }
  GRAFT_ASSIGN_OR_RETURN(const Sensitivity sensitivity, ReadSensitivity(path));
  GRAFT_ASSIGN_OR_RETURN(const std::string sha256,
                         Sha256File(JoinPath(adapter_folder, "adapter_model.safetensors")));
  if (sha256 != sensitivity.adapter_sha256) {
    return InputError(absl::StrCat(path, ": adapter_sha256: found ",
                                   Printable(sensitivity.adapter_sha256), ", but ", adapter_folder,
                                   "/adapter_model.safetensors has ", sha256));
  }
  std::map<models::SiteId, double> scores;
  for (const adapters::ModuleScore& module : sensitivity.modules)
    scores[module.site] = module.score;
  for (adapters::ModuleScore& module : *modules) {
    const auto found = scores.find(module.site);
    if (found == scores.end()) {
      return InputError(absl::StrCat(path, ": modules: has no layer ", module.site.layer, " ",
                                     models::RoleName(module.site.role)));
    }
    module.score = found->second;
  }
  return absl::OkStatus();
}

}  // namespace graft::trainer
