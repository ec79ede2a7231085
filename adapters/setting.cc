#include "adapters/setting.h"

#include <algorithm>
#include <optional>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::adapters {
namespace {

using nlohmann::json;

constexpr int64_t kMaxLayers = 1'000'000;

absl::Status CheckFormat(const json& setting, const std::string& origin) {
  GRAFT_RETURN_IF_ERROR(CheckKnownKeys(
      setting, {"format", "version", "model_type", "num_layers", "selection", "keep"}, origin));
  GRAFT_ASSIGN_OR_RETURN(const std::string format, GetString(setting, "format", origin));
  if (format != kSettingFormat) {
    return InputError(absl::StrCat(origin, ": format: found \"", Printable(format),
                                   "\", must be \"", kSettingFormat, "\""));
  }
  GRAFT_ASSIGN_OR_RETURN(const int64_t version, GetInt(setting, "version", 0, INT64_MAX, origin));
  if (version != 1) {
    return InputError(absl::StrCat(origin, ": version: found ", version,
                                   ", this program reads version 1; score again"));
  }
  return GetObject(setting, "selection", origin).status();
}

absl::StatusOr<std::vector<models::Role>> ReadRoles(const json& entry, const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         GetStringList(entry, "roles", origin));
  std::vector<models::Role> roles;
  for (const std::string& name : names) {
    const std::optional<models::Role> role = models::ParseRole(name);
    if (!role || !models::IsLinear(*role)) {
      return InputError(absl::StrCat(origin, ": roles: found \"", Printable(name),
                                     "\", must be the role of a linear, as attn.q"));
    }
    if (std::count(roles.begin(), roles.end(), *role) != 0) {
      return InputError(absl::StrCat(origin, ": roles: ", name, " comes twice"));
    }
    roles.push_back(*role);
  }
  if (roles.empty()) return InputError(absl::StrCat(origin, ": roles: names no role"));
  std::sort(roles.begin(), roles.end());
  return roles;
}

absl::StatusOr<KeptLayer> ReadKeptLayer(const json& entry, int num_layers,
                                        const std::string& origin) {
  GRAFT_RETURN_IF_ERROR(CheckKnownKeys(entry, {"layer", "roles", "rank", "alpha"}, origin));
  KeptLayer kept;
  GRAFT_ASSIGN_OR_RETURN(const int64_t layer, GetInt(entry, "layer", 0, num_layers - 1, origin));
  kept.layer = static_cast<int>(layer);
  GRAFT_ASSIGN_OR_RETURN(kept.roles, ReadRoles(entry, origin));
  GRAFT_ASSIGN_OR_RETURN(kept.rank, GetInt(entry, "rank", 1, 65536, origin));
  GRAFT_ASSIGN_OR_RETURN(kept.alpha, GetReal(entry, "alpha", 1e-6, 1e6, origin));
  return kept;
}

}  // namespace

absl::StatusOr<Setting> ParseSetting(const json& json, const std::string& origin) {
  GRAFT_RETURN_IF_ERROR(CheckFormat(json, origin));
  Setting setting;
  GRAFT_ASSIGN_OR_RETURN(setting.model_type, GetString(json, "model_type", origin));
  GRAFT_ASSIGN_OR_RETURN(const int64_t num_layers,
                         GetInt(json, "num_layers", 1, kMaxLayers, origin));
  setting.num_layers = static_cast<int>(num_layers);
  GRAFT_ASSIGN_OR_RETURN(const nlohmann::json* keep, GetArray(json, "keep", origin));
  for (size_t i = 0; i < keep->size(); ++i) {
    const std::string where = absl::StrCat(origin, ": keep[", i, "]");
    GRAFT_ASSIGN_OR_RETURN(KeptLayer kept, ReadKeptLayer((*keep)[i], setting.num_layers, where));
    const bool twice =
        std::any_of(setting.keep.begin(), setting.keep.end(),
                    [&](const KeptLayer& other) { return other.layer == kept.layer; });
    if (twice) {
      return InputError(absl::StrCat(where, ": layer: ", kept.layer, " comes twice"));
    }
    setting.keep.push_back(std::move(kept));
  }
  if (setting.keep.empty()) return InputError(absl::StrCat(origin, ": keep: names no layer"));
  std::sort(setting.keep.begin(), setting.keep.end(),
            [](const KeptLayer& a, const KeptLayer& b) { return a.layer < b.layer; });
  return setting;
}

absl::StatusOr<Setting> ReadSetting(const std::string& path) {
  // The user named this file, so a link may lead anywhere.
  GRAFT_ASSIGN_OR_RETURN(const nlohmann::json json, ReadJsonFile(path, {}, /*follow_links=*/true));
  return ParseSetting(json, Printable(path, 512));
}

}  // namespace graft::adapters
