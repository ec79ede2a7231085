#include "adapters/importance_file.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/json_writer.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::adapters {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr char kFormat[] = "graft-importance";
constexpr int64_t kMaxLayers = 1'000'000;
constexpr double kMost = std::numeric_limits<double>::max();

ordered_json OrNull(const std::optional<double>& value) {
  return value ? ordered_json(*value) : ordered_json(nullptr);
}

ordered_json ModuleJson(const ModuleScore& module) {
  ordered_json terms = ordered_json::object();
  for (const auto& [name, value] : module.terms) terms[name] = value;
  return {{"layer", module.site.layer},
          {"role", models::RoleName(module.site.role)},
          {"score", module.score},
          {"stderr", OrNull(module.standard_error)},
          {"terms", terms},
          {"in_features", module.in_features},
          {"out_features", module.out_features}};
}

absl::StatusOr<std::optional<double>> GetOptionalReal(const json& object, const std::string& key,
                                                      const std::string& origin) {
  if (!object.contains(key)) return InputError(absl::StrCat(origin, ": ", key, ": missing"));
  if (!HasValue(object, key)) return std::optional<double>();
  GRAFT_ASSIGN_OR_RETURN(const double value, GetReal(object, key, -kMost, kMost, origin));
  return std::optional<double>(value);
}

absl::Status ReadHeader(const json& file, const std::string& origin, Importance* importance) {
  GRAFT_RETURN_IF_ERROR(CheckKnownKeys(
      file,
      {"format", "version", "score", "model_type", "num_layers", "model_fingerprint",
       "adapter_fingerprint", "data_fingerprint", "num_samples", "num_tokens", "num_trained_tokens",
       "base_loss", "bare_loss", "grid", "reference", "modules"},
      origin));
  GRAFT_ASSIGN_OR_RETURN(const std::string format, GetString(file, "format", origin));
  if (format != kFormat) {
    return InputError(absl::StrCat(origin, ": format: found \"", Printable(format),
                                   "\", must be \"", kFormat, "\""));
  }
  GRAFT_ASSIGN_OR_RETURN(const int64_t version, GetInt(file, "version", 0, INT64_MAX, origin));
  if (version != 1) {
    return InputError(absl::StrCat(origin, ": version: found ", version,
                                   ", this program reads version 1; score again"));
  }
  GRAFT_ASSIGN_OR_RETURN(importance->score, GetString(file, "score", origin));
  const std::vector<std::string> methods(std::begin(kScoreMethods), std::end(kScoreMethods));
  if (std::count(methods.begin(), methods.end(), importance->score) == 0) {
    return InputError(absl::StrCat(origin, ": score: found \"", Printable(importance->score),
                                   "\", must be one of ", JoinNames(methods)));
  }
  GRAFT_ASSIGN_OR_RETURN(importance->model_type, GetString(file, "model_type", origin));
  GRAFT_ASSIGN_OR_RETURN(const int64_t layers, GetInt(file, "num_layers", 1, kMaxLayers, origin));
  importance->num_layers = static_cast<int>(layers);
  GRAFT_ASSIGN_OR_RETURN(importance->model_fingerprint,
                         GetString(file, "model_fingerprint", origin));
  GRAFT_ASSIGN_OR_RETURN(importance->adapter_fingerprint,
                         GetString(file, "adapter_fingerprint", origin));
  GRAFT_ASSIGN_OR_RETURN(importance->data_fingerprint, GetString(file, "data_fingerprint", origin));
  GRAFT_ASSIGN_OR_RETURN(importance->num_samples,
                         GetInt(file, "num_samples", 0, INT64_MAX, origin));
  GRAFT_ASSIGN_OR_RETURN(importance->num_tokens, GetInt(file, "num_tokens", 0, INT64_MAX, origin));
  GRAFT_ASSIGN_OR_RETURN(importance->num_trained_tokens,
                         GetInt(file, "num_trained_tokens", 0, INT64_MAX, origin));
  GRAFT_ASSIGN_OR_RETURN(importance->base_loss, GetOptionalReal(file, "base_loss", origin));
  GRAFT_ASSIGN_OR_RETURN(importance->bare_loss, GetOptionalReal(file, "bare_loss", origin));
  return absl::OkStatus();
}

absl::Status ReadGrid(const json& file, const std::string& origin, Importance* importance) {
  ScoreGrid& grid = importance->grid;
  GRAFT_ASSIGN_OR_RETURN(const json* entry, GetObject(file, "grid", origin));
  const std::string where = absl::StrCat(origin, ": grid");
  GRAFT_RETURN_IF_ERROR(CheckKnownKeys(
      *entry, {"dtype", "threads", "shard_samples", "layer_block", "micro_batch"}, where));
  GRAFT_ASSIGN_OR_RETURN(grid.dtype, GetString(*entry, "dtype", where));
  for (const auto& [key, value] : {std::pair<const char*, int64_t*>{"threads", &grid.threads},
                                   {"shard_samples", &grid.shard_samples},
                                   {"layer_block", &grid.layer_block},
                                   {"micro_batch", &grid.micro_batch}}) {
    GRAFT_ASSIGN_OR_RETURN(*value, GetInt(*entry, key, 1, INT64_MAX, where));
  }
  return absl::OkStatus();
}

absl::Status ReadReference(const json& file, const std::string& origin, Importance* importance) {
  if (!file.contains("reference")) return InputError(absl::StrCat(origin, ": reference: missing"));
  if (!HasValue(file, "reference")) return absl::OkStatus();
  GRAFT_ASSIGN_OR_RETURN(const json* entry, GetObject(file, "reference", origin));
  const std::string where = absl::StrCat(origin, ": reference");
  GRAFT_RETURN_IF_ERROR(CheckKnownKeys(*entry, {"rank", "alpha", "rslora"}, where));
  ReferenceSize size;
  GRAFT_ASSIGN_OR_RETURN(size.rank, GetInt(*entry, "rank", 1, 65536, where));
  GRAFT_ASSIGN_OR_RETURN(size.alpha, GetReal(*entry, "alpha", 1e-6, 1e6, where));
  GRAFT_ASSIGN_OR_RETURN(size.rslora, GetBool(*entry, "rslora", where));
  importance->reference = size;
  return absl::OkStatus();
}

absl::StatusOr<ModuleScore> ReadModule(const json& entry, int num_layers,
                                       const std::string& origin) {
  GRAFT_RETURN_IF_ERROR(CheckKnownKeys(
      entry, {"layer", "role", "score", "stderr", "terms", "in_features", "out_features"}, origin));
  ModuleScore module;
  GRAFT_ASSIGN_OR_RETURN(const int64_t layer, GetInt(entry, "layer", 0, num_layers - 1, origin));
  GRAFT_ASSIGN_OR_RETURN(const std::string role, GetString(entry, "role", origin));
  const std::optional<models::Role> parsed = models::ParseRole(role);
  if (!parsed || !models::IsLinear(*parsed)) {
    return InputError(absl::StrCat(origin, ": role: found \"", Printable(role),
                                   "\", must be the role of a linear, as attn.q"));
  }
  module.site = {static_cast<int>(layer), *parsed};
  GRAFT_ASSIGN_OR_RETURN(module.score, GetReal(entry, "score", -kMost, kMost, origin));
  GRAFT_ASSIGN_OR_RETURN(module.standard_error, GetOptionalReal(entry, "stderr", origin));
  GRAFT_ASSIGN_OR_RETURN(const json* terms, GetObject(entry, "terms", origin));
  for (const auto& [name, unused] : terms->items()) {
    GRAFT_ASSIGN_OR_RETURN(const double term,
                           GetReal(*terms, name, -kMost, kMost, absl::StrCat(origin, ": terms")));
    module.terms.emplace_back(name, term);
  }
  constexpr int64_t kMaxFeatures = int64_t{1} << 32;
  GRAFT_ASSIGN_OR_RETURN(module.in_features, GetInt(entry, "in_features", 1, kMaxFeatures, origin));
  GRAFT_ASSIGN_OR_RETURN(module.out_features,
                         GetInt(entry, "out_features", 1, kMaxFeatures, origin));
  return module;
}

}  // namespace

std::string ImportanceText(const Importance& importance) {
  ordered_json modules = ordered_json::array();
  for (const ModuleScore& module : importance.modules) modules.push_back(ModuleJson(module));
  ordered_json reference = nullptr;
  if (importance.reference) {
    reference = {{"rank", importance.reference->rank},
                 {"alpha", importance.reference->alpha},
                 {"rslora", importance.reference->rslora}};
  }
  const ScoreGrid& grid = importance.grid;
  return WriteJson({{"format", kFormat},
                    {"version", 1},
                    {"score", importance.score},
                    {"model_type", importance.model_type},
                    {"num_layers", importance.num_layers},
                    {"model_fingerprint", importance.model_fingerprint},
                    {"adapter_fingerprint", importance.adapter_fingerprint},
                    {"data_fingerprint", importance.data_fingerprint},
                    {"num_samples", importance.num_samples},
                    {"num_tokens", importance.num_tokens},
                    {"num_trained_tokens", importance.num_trained_tokens},
                    {"base_loss", OrNull(importance.base_loss)},
                    {"bare_loss", OrNull(importance.bare_loss)},
                    {"grid",
                     {{"dtype", grid.dtype},
                      {"threads", grid.threads},
                      {"shard_samples", grid.shard_samples},
                      {"layer_block", grid.layer_block},
                      {"micro_batch", grid.micro_batch}}},
                    {"reference", reference},
                    {"modules", modules}});
}

absl::StatusOr<Importance> ParseImportance(const json& file, const std::string& origin) {
  Importance importance;
  GRAFT_RETURN_IF_ERROR(ReadHeader(file, origin, &importance));
  GRAFT_RETURN_IF_ERROR(ReadGrid(file, origin, &importance));
  GRAFT_RETURN_IF_ERROR(ReadReference(file, origin, &importance));
  GRAFT_ASSIGN_OR_RETURN(const json* modules, GetArray(file, "modules", origin));
  for (size_t i = 0; i < modules->size(); ++i) {
    const std::string where = absl::StrCat(origin, ": modules[", i, "]");
    GRAFT_ASSIGN_OR_RETURN(ModuleScore module,
                           ReadModule((*modules)[i], importance.num_layers, where));
    if (i > 0 && module.site <= importance.modules.back().site) {
      return InputError(absl::StrCat(
          where, ": layer ", module.site.layer, " ", models::RoleName(module.site.role),
          " comes twice or out of order; the order is layer, then role"));
    }
    importance.modules.push_back(std::move(module));
  }
  if (importance.modules.empty())
    return InputError(absl::StrCat(origin, ": modules: names no module"));
  return importance;
}

absl::StatusOr<Importance> ReadImportance(const std::string& path) {
  constexpr JsonLimits kLimits{.max_bytes = int64_t{64} << 20, .max_depth = 8};
  GRAFT_ASSIGN_OR_RETURN(const json file, ReadJsonFile(path, kLimits, /*follow_links=*/true));
  return ParseImportance(file, Printable(path, 512));
}

}  // namespace graft::adapters
