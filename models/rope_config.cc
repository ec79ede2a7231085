#include "models/rope_config.h"

#include <algorithm>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::models {
namespace {

using nlohmann::json;

constexpr double kMinTheta = 1e-3;
constexpr double kMaxTheta = 1e15;
constexpr double kMaxFactor = 1e6;
constexpr int64_t kMaxPositions = 16'777'216;

struct TypeKeys {
  const char* type;
  std::vector<std::string> keys;  // beside type, rope_type, rope_theta, partial_rotary_factor
};

const std::vector<TypeKeys>& SupportedTypes() {
  static const auto* const types = new std::vector<TypeKeys>{
      {"default", {}},
      {"linear", {"factor"}},
      {"dynamic", {"factor", "original_max_position_embeddings"}},
      {"llama3",
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}},
      {"yarn",
       {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate"}}};
  return *types;
}

// The object that holds the parameters, null when there is none; sets *origin to its place.
absl::StatusOr<const json*> FindParameters(const json& config, std::string* origin) {
  const bool has_new = HasValue(config, "rope_parameters");
  const bool has_old = HasValue(config, "rope_scaling");
  if (!has_new && !has_old) return nullptr;
  const char* const key = has_new ? "rope_parameters" : "rope_scaling";
  if (has_new && has_old && config["rope_parameters"] != config["rope_scaling"]) {
    return InputError(absl::StrCat(*origin,
                                   ": rope_scaling: differs from rope_parameters; only one "
                                   "of them may be given"));
  }
  GRAFT_ASSIGN_OR_RETURN(const json* parameters, GetObject(config, key, *origin));
  absl::StrAppend(origin, ": ", key);
  return parameters;
}

absl::StatusOr<std::string> ReadType(const json& parameters, const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const std::string old_name,
                         GetStringOr(parameters, "type", "default", origin));
  GRAFT_ASSIGN_OR_RETURN(const std::string type,
                         GetStringOr(parameters, "rope_type", old_name, origin));
  if (HasValue(parameters, "type") && type != old_name) {
    return InputError(absl::StrCat(origin, ": rope_type: \"", Printable(type),
                                   "\" differs from type \"", Printable(old_name), "\""));
  }
  return type;
}

absl::Status CheckType(const json& parameters, const std::string& type, const std::string& origin) {
  std::vector<std::string> names;
  for (const TypeKeys& row : SupportedTypes()) {
    names.push_back(row.type);
    if (type != row.type) continue;
    for (const auto& [key, value] : parameters.items()) {
      static const std::vector<std::string>* const common =
          new std::vector<std::string>{"type", "rope_type", "rope_theta", "partial_rotary_factor"};
      const bool known = std::count(common->begin(), common->end(), key) +
                             std::count(row.keys.begin(), row.keys.end(), key) >
                         0;
      if (known || value.is_null() || value == json(false)) continue;
      return InputError(absl::StrCat(origin, ": ", Printable(key), ": found ", DescribeJson(value),
                                     ", but rope type ", type, " has no such key"));
    }
    return absl::OkStatus();
  }
  return InputError(absl::StrCat(origin, ": rope_type: found \"", Printable(type),
                                 "\", supported are ", JoinNames(names)));
}

absl::StatusOr<double> ReadTheta(const json& config, const json& parameters,
                                 const std::string& origin, const std::string& inner) {
  GRAFT_ASSIGN_OR_RETURN(const double outer_theta,
                         GetRealOr(config, "rope_theta", 10000.0, kMinTheta, kMaxTheta, origin));
  GRAFT_ASSIGN_OR_RETURN(const double theta, GetRealOr(parameters, "rope_theta", outer_theta,
                                                       kMinTheta, kMaxTheta, inner));
  if (HasValue(config, "rope_theta") && theta != outer_theta) {
    return InputError(absl::StrCat(inner, ": rope_theta: ", FormatReal(theta),
                                   " differs from the rope_theta outside, ",
                                   FormatReal(outer_theta)));
  }
  return theta;
}

absl::Status ReadLlama3(const json& parameters, const std::string& origin, RopeConfig* rope) {
  GRAFT_ASSIGN_OR_RETURN(rope->low_freq_factor,
                         GetReal(parameters, "low_freq_factor", 1e-6, kMaxFactor, origin));
  GRAFT_ASSIGN_OR_RETURN(rope->high_freq_factor,
                         GetReal(parameters, "high_freq_factor", 1e-6, kMaxFactor, origin));
  if (rope->high_freq_factor <= rope->low_freq_factor) {
    return InputError(
        absl::StrCat(origin, ": high_freq_factor: ", FormatReal(rope->high_freq_factor),
                     " must be larger than low_freq_factor, ", FormatReal(rope->low_freq_factor)));
  }
  return absl::OkStatus();
}

// In transformers a 0 in these fields means "not given".
absl::StatusOr<std::optional<double>> ReadNonZero(const json& parameters, const std::string& key,
                                                  const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const double value,
                         GetRealOr(parameters, key, 0.0, 0.0, kMaxFactor, origin));
  return value == 0.0 ? std::optional<double>() : std::optional<double>(value);
}

absl::Status ReadYarn(const json& parameters, const std::string& origin, RopeConfig* rope) {
  GRAFT_ASSIGN_OR_RETURN(const auto beta_fast, ReadNonZero(parameters, "beta_fast", origin));
  GRAFT_ASSIGN_OR_RETURN(const auto beta_slow, ReadNonZero(parameters, "beta_slow", origin));
  rope->beta_fast = beta_fast.value_or(rope->beta_fast);
  rope->beta_slow = beta_slow.value_or(rope->beta_slow);
  if (rope->beta_fast < rope->beta_slow) {
    return InputError(absl::StrCat(origin, ": beta_fast: ", FormatReal(rope->beta_fast),
                                   " must not be smaller than beta_slow, ",
                                   FormatReal(rope->beta_slow)));
  }
  GRAFT_ASSIGN_OR_RETURN(rope->mscale, ReadNonZero(parameters, "mscale", origin));
  GRAFT_ASSIGN_OR_RETURN(rope->mscale_all_dim, ReadNonZero(parameters, "mscale_all_dim", origin));
  if (HasValue(parameters, "attention_factor")) {
    GRAFT_ASSIGN_OR_RETURN(rope->attention_factor,
                           GetReal(parameters, "attention_factor", 0.0, kMaxFactor, origin));
  }
  GRAFT_ASSIGN_OR_RETURN(rope->truncate, GetBoolOr(parameters, "truncate", true, origin));
  return absl::OkStatus();
}

absl::Status ReadScaling(const json& parameters, int64_t max_positions, const std::string& origin,
                         RopeConfig* rope) {
  GRAFT_ASSIGN_OR_RETURN(rope->original_max_positions,
                         GetIntOr(parameters, "original_max_position_embeddings", max_positions, 1,
                                  kMaxPositions, origin));
  if (rope->type == "dynamic" && rope->original_max_positions != max_positions) {
    // transformers scales from max_position_embeddings whatever this key says.
    return InputError(absl::StrCat(
        origin, ": original_max_position_embeddings: ", rope->original_max_positions,
        " must equal max_position_embeddings, ", max_positions, ", for rope type dynamic"));
  }
  const bool factor_is_null = parameters.contains("factor") && !HasValue(parameters, "factor");
  if (rope->type == "yarn" && factor_is_null) {
    rope->factor =
        static_cast<double>(max_positions) / static_cast<double>(rope->original_max_positions);
  } else {
    GRAFT_ASSIGN_OR_RETURN(rope->factor, GetReal(parameters, "factor", 1.0, kMaxFactor, origin));
  }
  if (rope->type == "llama3") return ReadLlama3(parameters, origin, rope);
  if (rope->type == "yarn") return ReadYarn(parameters, origin, rope);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RopeConfig> ReadRopeConfig(const json& config, int64_t max_positions,
                                          const std::string& origin) {
  static const json* const none = new json(json::object());
  std::string inner = origin;
  GRAFT_ASSIGN_OR_RETURN(const json* found, FindParameters(config, &inner));
  const json& parameters = found == nullptr ? *none : *found;
  RopeConfig rope;
  GRAFT_ASSIGN_OR_RETURN(rope.type, ReadType(parameters, inner));
  GRAFT_RETURN_IF_ERROR(CheckType(parameters, rope.type, inner));
  GRAFT_ASSIGN_OR_RETURN(rope.theta, ReadTheta(config, parameters, origin, inner));
  GRAFT_RETURN_IF_ERROR(
      GetRealOr(parameters, "partial_rotary_factor", 1.0, 1.0, 1.0, inner).status());
  if (rope.type != "default") {
    GRAFT_RETURN_IF_ERROR(ReadScaling(parameters, max_positions, inner, &rope));
  }
  return rope;
}

}  // namespace graft::models
