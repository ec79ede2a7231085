#include "adapters/fanlora.h"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "adapters/setting.h"
#include "adapters/site_matching.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::adapters {
namespace {

using models::SiteSpec;

absl::Status CheckModel(const Setting& setting, const ModelFacts& model,
                        const std::string& origin) {
  if (setting.model_type != model.model_type) {
    return InputError(absl::StrCat(origin, ": model_type: found \"", Printable(setting.model_type),
                                   "\", the model's is \"", model.model_type, "\""));
  }
  if (setting.num_layers != model.num_layers) {
    return InputError(absl::StrCat(origin, ": num_layers: found ", setting.num_layers,
                                   ", the model has ", model.num_layers));
  }
  return absl::OkStatus();
}

absl::StatusOr<SiteSpec> FindSite(const ModelFacts& model, int layer, models::Role role,
                                  const std::string& origin) {
  std::vector<SiteSpec> linears;
  for (const SiteSpec& site : model.sites) {
    if (site.id.layer != layer || !models::IsLinear(site.id.role)) continue;
    if (site.id.role == role) return site;
    linears.push_back(site);
  }
  return InputError(absl::StrCat(origin, ": keep: layer ", layer, " of the model has no ",
                                 models::RoleName(role), "; it has ",
                                 JoinNames(RoleNamesOf(linears))));
}

// What `pattern` ("rank_pattern") gives a module, as huggingface/peft reads it: a key is the
// module's name or its end. Keys that are more of an expression than a name are not evaluated: they
// are untrusted.
absl::StatusOr<double> PatternValue(const nlohmann::json& config, const std::string& pattern,
                                    const std::string& module, double common,
                                    const std::string& origin) {
  if (!HasValue(config, pattern)) return common;
  GRAFT_ASSIGN_OR_RETURN(const nlohmann::json* entries, GetObject(config, pattern, origin));
  const std::string where = absl::StrCat(origin, ": ", pattern);
  double value = common;
  for (const auto& [key, unused] : entries->items()) {
    if (key.find_first_of("\\^$*+?()[]{}|") != std::string::npos) {
      return InputError(absl::StrCat(where, ": found \"", Printable(key),
                                     "\", must be names of modules, not expressions"));
    }
    if (module != key && !absl::EndsWith(module, "." + key)) continue;
    GRAFT_ASSIGN_OR_RETURN(value, GetReal(*entries, key, 0.0, 1e9, where));
    if (module == key) return value;
  }
  return value;
}

}  // namespace

void FanLora::VisitFields(FieldVisitor& v) {
  v.Text({"setting", "setting.json: the linears, ranks and alphas of each layer"}, &setting_);
  VisitTrainingFields(v);
}

absl::Status FanLora::Open(const ModelFacts& model) {
  if (setting_.empty()) {
    return RecipeError("adapter.setting: missing, method fanlora needs a setting.json");
  }
  GRAFT_ASSIGN_OR_RETURN(const Setting setting, ReadSetting(setting_));
  const std::string origin = Printable(setting_, 512);
  GRAFT_RETURN_IF_ERROR(CheckModel(setting, model, origin));
  kept_.clear();
  for (const KeptLayer& layer : setting.keep) {
    for (const models::Role role : layer.roles) {
      GRAFT_ASSIGN_OR_RETURN(const SiteSpec site, FindSite(model, layer.layer, role, origin));
      const int64_t most = std::min(site.in_features, site.out_features);
      if (layer.rank > most) {
        return InputError(absl::StrCat(origin, ": keep: layer ", layer.layer, ": rank: found ",
                                       layer.rank, ", at most ", most, " fits ", site.module));
      }
      kept_[site.id] = {layer.rank, layer.alpha};
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SiteSpec>> FanLora::MatchSites(
    const std::vector<SiteSpec>& model_sites) const {
  std::vector<SiteSpec> matched;
  for (const SiteSpec& site : model_sites) {
    if (kept_.count(site.id) != 0) matched.push_back(site);
  }
  return matched;
}

Lora::Size FanLora::SizeOf(const SiteSpec& site) const { return kept_.at(site.id); }

Lora::Size FanLora::CommonSize(const std::vector<SiteSpec>& matched) const {
  return matched.empty() ? Size() : SizeOf(matched.front());
}

std::map<std::string, Lora::Size> FanLora::FolderSizes(const std::vector<SiteSpec>& matched) const {
  std::map<std::string, int64_t> parts;
  for (const SiteSpec& site : matched) ++parts[site.module];
  std::map<std::string, Size> sizes;
  for (const SiteSpec& site : matched) {
    const Size size = SizeOf(site);
    const int64_t count = parts[site.module];
    const auto factor = static_cast<double>(count);
    sizes[site.module] = {size.rank * count, size.alpha * (rslora() ? std::sqrt(factor) : factor)};
  }
  return sizes;
}

LoraPatterns FanLora::Patterns(const std::vector<SiteSpec>& matched) const {
  const Size common = CommonSize(matched);
  LoraPatterns patterns;
  for (const auto& [module, size] : FolderSizes(matched)) {
    if (size.rank != common.rank) patterns.rank[module] = size.rank;
    if (size.alpha != common.alpha) patterns.alpha[module] = size.alpha;
  }
  return patterns;
}

absl::Status FanLora::CheckPeftConfig(const nlohmann::json& config,
                                      const std::string& origin) const {
  return CheckVariant(config, origin);
}

absl::StatusOr<NamedTensors> FanLora::FromFolder(const std::vector<SiteSpec>& matched,
                                                 const nlohmann::json& config, NamedTensors folder,
                                                 const std::string& origin) const {
  GRAFT_ASSIGN_OR_RETURN(const double r, GetReal(config, "r", 1, 65536, origin));
  GRAFT_ASSIGN_OR_RETURN(const double lora_alpha, GetReal(config, "lora_alpha", 0.0, 1e9, origin));
  for (const auto& [module, size] : FolderSizes(matched)) {
    GRAFT_ASSIGN_OR_RETURN(const double rank,
                           PatternValue(config, "rank_pattern", module, r, origin));
    GRAFT_ASSIGN_OR_RETURN(const double alpha,
                           PatternValue(config, "alpha_pattern", module, lora_alpha, origin));
    const double difference = std::abs(alpha - size.alpha);  // of sqrt in another program
    if (rank == static_cast<double>(size.rank) && difference <= 1e-9 * size.alpha) continue;
    return InputError(absl::StrCat(origin, ": ", module, " has rank ", rank, " and alpha ", alpha,
                                   ", but ", Printable(setting_, 512), " gives it rank ", size.rank,
                                   " and alpha ", size.alpha));
  }
  return CutShared(matched, std::move(folder), origin);
}

}  // namespace graft::adapters
