#include "trainer/inspect_adapter.h"

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"
#include "models/weights/safetensors.h"

namespace graft::trainer {
namespace {

using models::TensorType;
using models::TensorView;
using nlohmann::json;

constexpr char kConfigFile[] = "adapter_config.json";
constexpr char kTensorFile[] = "adapter_model.safetensors";
constexpr char kPrefix[] = "base_model.model.";
constexpr int64_t kMaxRank = 65'536;

// All exponent bits of one element set: infinity or NaN.
template <typename T>
std::optional<int64_t> FirstWithBits(const TensorView& view, T bits) {
  for (int64_t i = 0; i < view.num_elements(); ++i) {
    T value;
    std::memcpy(&value, view.data + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    if ((value & bits) == bits) return i;
  }
  return std::nullopt;
}

absl::Status CheckFinite(const TensorView& view, const std::string& where) {
  std::optional<int64_t> found;
  switch (view.type) {
    case TensorType::kFloat32:
      found = FirstWithBits<uint32_t>(view, 0x7F800000u);
      break;
    case TensorType::kBFloat16:
      found = FirstWithBits<uint16_t>(view, 0x7F80u);
      break;
    case TensorType::kFloat16:
      found = FirstWithBits<uint16_t>(view, 0x7C00u);
      break;
    default:
      return InputError(absl::StrCat(where, ": dtype is ", models::TensorTypeName(view.type),
                                     ", supported are F32, F16, BF16"));
  }
  if (!found) return absl::OkStatus();
  return InputError(absl::StrCat(where, ": element ", *found, " is not a finite number"));
}

bool ModuleMatches(const std::string& module, const std::string& target) {
  return module == target || absl::EndsWith(module, "." + target);
}

// The ranks that adapter_config.json allows a module. A key of rank_pattern may be a regular
// expression; such a key is not evaluated (it is untrusted), its rank is allowed everywhere.
struct RankRule {
  int64_t rank = 0;
  std::map<std::string, int64_t> by_module;
  std::set<int64_t> anywhere;

  bool Allows(const std::string& module, int64_t found) const {
    if (anywhere.count(found) != 0) return true;
    for (const auto& [key, value] : by_module) {
      if (ModuleMatches(module, key)) return found == value;
    }
    return found == rank;
  }
};

absl::StatusOr<RankRule> ReadRankRule(const json& config, const std::string& where) {
  RankRule rule;
  GRAFT_ASSIGN_OR_RETURN(rule.rank, GetInt(config, "r", 1, kMaxRank, where));
  if (!HasValue(config, "rank_pattern")) return rule;
  GRAFT_ASSIGN_OR_RETURN(const json* pattern, GetObject(config, "rank_pattern", where));
  for (const auto& [key, value] : pattern->items()) {
    GRAFT_ASSIGN_OR_RETURN(const int64_t rank,
                           GetInt(*pattern, key, 1, kMaxRank, where + ": rank_pattern"));
    if (key.find_first_of("\\^$*+?()[]{}|") == std::string::npos) {
      rule.by_module[key] = rank;
    } else {
      rule.anywhere.insert(rank);
    }
  }
  return rule;
}

// Names that the config targets; empty when it uses an expression.
absl::StatusOr<std::vector<std::string>> ReadTargets(const json& config, const std::string& where) {
  if (!HasValue(config, "target_modules") || config["target_modules"].is_string()) {
    return std::vector<std::string>();
  }
  return GetStringList(config, "target_modules", where);
}

struct LoraTensor {
  std::string module;
  bool is_a = false;  // lora_A (r, in), else lora_B (out, r)
};

std::optional<LoraTensor> ParseLoraName(const std::string& name) {
  for (const bool is_a : {true, false}) {
    const std::string suffix = is_a ? ".lora_A.weight" : ".lora_B.weight";
    if (!absl::StartsWith(name, kPrefix) || !absl::EndsWith(name, suffix)) continue;
    const std::size_t begin = std::strlen(kPrefix);
    if (name.size() <= begin + suffix.size()) continue;
    return LoraTensor{name.substr(begin, name.size() - begin - suffix.size()), is_a};
  }
  return std::nullopt;
}

absl::Status CheckLora(const json& config, const models::SafetensorsFile& file,
                       const std::string& config_where) {
  GRAFT_ASSIGN_OR_RETURN(const RankRule rule, ReadRankRule(config, config_where));
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> targets, ReadTargets(config, config_where));
  for (const auto& [name, view] : file.tensors()) {
    const std::optional<LoraTensor> tensor = ParseLoraName(name);
    if (!tensor) continue;  // a task head or an embedding that was saved whole
    const std::string where =
        absl::StrCat(Printable(file.path(), 512), ": tensor `", Printable(name), "`");
    bool targeted = targets.empty();
    for (const std::string& target : targets) {
      targeted = targeted || ModuleMatches(tensor->module, target);
    }
    if (!targeted) {
      return InputError(
          absl::StrCat(where, ": target_modules in ", kConfigFile, " does not name its module"));
    }
    const bool is_matrix = view.shape.size() == 2;
    const int64_t rank = is_matrix ? view.shape[tensor->is_a ? 0 : 1] : 0;
    if (!is_matrix || !rule.Allows(tensor->module, rank)) {
      return InputError(
          absl::StrCat(where, ": its rank is ", rank, ", ", kConfigFile, " says r = ", rule.rank));
    }
    const std::string other =
        absl::StrCat(kPrefix, tensor->module, tensor->is_a ? ".lora_B.weight" : ".lora_A.weight");
    GRAFT_RETURN_IF_ERROR(file.Find(other).status());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> DescribeAdapter(const std::string& folder) {
  const std::string config_path = JoinPath(folder, kConfigFile);
  GRAFT_ASSIGN_OR_RETURN(const json config, ReadJsonFile(config_path));
  const std::string where = Printable(config_path, 512);
  GRAFT_ASSIGN_OR_RETURN(const std::string type, GetString(config, "peft_type", where));
  GRAFT_ASSIGN_OR_RETURN(const auto file,
                         models::SafetensorsFile::Open(JoinPath(folder, kTensorFile)));
  int64_t parameters = 0;
  for (const auto& [name, view] : file->tensors()) {
    GRAFT_RETURN_IF_ERROR(CheckFinite(
        view, absl::StrCat(Printable(file->path(), 512), ": tensor `", Printable(name), "`")));
    parameters += view.num_elements();
  }
  if (type == "LORA") GRAFT_RETURN_IF_ERROR(CheckLora(config, *file, where));
  std::string text = absl::StrCat("adapter folder    ", Printable(folder, 512), "\n",
                                  "method            ", Printable(type), "\n");
  GRAFT_ASSIGN_OR_RETURN(const std::string base,
                         GetStringOr(config, "base_model_name_or_path", "", where));
  if (!base.empty()) absl::StrAppend(&text, "base model        ", Printable(base), "\n");
  if (type == "LORA") absl::StrAppend(&text, "rank              ", config["r"].dump(), "\n");
  absl::StrAppend(&text, "tensors           ", file->tensors().size(), ", all finite\n",
                  "parameters        ", parameters, "\n", "file              ",
                  FormatBytes(file->file_bytes()), "\n");
  return text;
}

}  // namespace graft::trainer
