#include "adapters/selection.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/json_writer.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::adapters {
namespace {

using models::Role;
using nlohmann::json;
using nlohmann::ordered_json;
using Modules = std::vector<ModuleScore>;

int64_t Features(const ModuleScore& module) { return module.in_features + module.out_features; }

int64_t SumOfFeatures(const Modules& modules) {
  int64_t sum = 0;
  for (const ModuleScore& module : modules) sum += Features(module);
  return sum;
}

// The first `k` by falling score; ties: lower layer, then role order.
Modules Highest(Modules modules, int64_t k) {
  std::sort(modules.begin(), modules.end(), [](const ModuleScore& a, const ModuleScore& b) {
    return a.score != b.score ? a.score > b.score : a.site < b.site;
  });
  modules.resize(std::min(modules.size(), static_cast<size_t>(k)));
  return modules;
}

Modules HighestOfEachLayer(const Modules& modules, int64_t k) {
  std::map<int, Modules> layers;
  for (const ModuleScore& module : modules) layers[module.site.layer].push_back(module);
  Modules kept;
  for (auto& [layer, members] : layers) {
    for (ModuleScore& module : Highest(std::move(members), k)) kept.push_back(std::move(module));
  }
  return kept;
}

// What keeping the module is worth; the part of ab that is the same for all modules would hide the
// sign.
double Gain(const Importance& importance, const ModuleScore& module) {
  return importance.score == "ab" ? module.Term("loo") + module.Term("keep_one") : module.score;
}

// Modules with one number here read the same input.
int InputOf(Role role) {
  switch (role) {
    case Role::kAttnK:
    case Role::kAttnV:
      return static_cast<int>(Role::kAttnQ);
    case Role::kFfnUp:
      return static_cast<int>(Role::kFfnGate);
    case Role::kCrossV:
      return static_cast<int>(Role::kCrossK);
    default:
      return static_cast<int>(role);
  }
}

// Falling gain per cost while the budget lasts; what does not fit is skipped, what gains nothing
// never taken. `cost_of(module, kept)` is the cost of one more module.
template <typename CostOf>
Modules WithinBudget(const Importance& importance, double budget, const CostOf& cost_of) {
  Modules left, kept;
  for (const ModuleScore& module : importance.modules) {
    if (Gain(importance, module) > 0) left.push_back(module);
  }
  double spent = 0;
  while (true) {
    size_t best = left.size();
    double best_value = 0, best_cost = 0;
    for (size_t i = 0; i < left.size(); ++i) {
      const double cost = cost_of(left[i], kept);
      const double value = Gain(importance, left[i]) / cost;
      if (spent + cost > budget || (best < left.size() && value <= best_value)) continue;
      best = i, best_value = value, best_cost = cost;
    }
    if (best == left.size()) return kept;
    spent += best_cost;
    kept.push_back(left[best]);
    left.erase(left.begin() + static_cast<std::ptrdiff_t>(best));
  }
}

Modules WithinLatency(const Importance& importance, double budget, const LatencyTable& latency) {
  return WithinBudget(importance, budget, [&](const ModuleScore& module, const Modules& kept) {
    const bool shares = std::any_of(kept.begin(), kept.end(), [&](const ModuleScore& other) {
      return other.site.layer == module.site.layer &&
             InputOf(other.site.role) == InputOf(module.site.role);
    });
    const LatencyTable::Cost& cost = latency.roles.at(module.site.role);
    return shares ? cost.next : cost.first;
  });
}

absl::StatusOr<Modules> Keep(const Importance& importance, const SelectOptions& options,
                             const LatencyTable& latency) {
  const Modules& modules = importance.modules;
  if (options.rule == "top_k_per_layer") return HighestOfEachLayer(modules, options.k);
  if (importance.score == "ab_rank") {
    return RecipeError(absl::StrCat("score.select.rule: found ", options.rule,
                                    ", scores of ab_rank compare modules of one layer only; "
                                    "allowed: top_k_per_layer"));
  }
  if (options.rule == "top_k") return Highest(modules, options.k);
  if (options.rule == "latency_budget") {
    for (const ModuleScore& module : modules) {
      if (latency.roles.count(module.site.role) != 0) continue;
      return RecipeError(absl::StrCat("score.select.latency_file: has no cost of ",
                                      models::RoleName(module.site.role)));
    }
    return WithinLatency(importance, options.budget, latency);
  }
  if (!importance.reference) {
    return RecipeError(
        "score.select.rule: found parameter_budget, which needs one rank of all scored modules, "
        "but "
        "theirs differ");
  }
  return WithinBudget(importance, options.budget, [&](const ModuleScore& module, const Modules&) {
    return static_cast<double>(importance.reference->rank * Features(module));
  });
}

struct Size {
  int64_t rank = 0;
  double alpha = 0;
};

// Rank and alpha of all kept modules. Budget rules keep the rank that they were reckoned with.
absl::StatusOr<Size> SizeOfKept(const Importance& importance, const Modules& kept,
                                const SelectOptions& options, std::vector<std::string>* warnings) {
  if (!importance.reference) {
    if (options.rank > 0 && options.alpha > 0) return Size{options.rank, options.alpha};
    return RecipeError(
        "score.select.rank: found 0, but the scored modules differ in rank or alpha; give "
        "score.select.rank and score.select.alpha");
  }
  const ReferenceSize& reference = *importance.reference;
  Size size{reference.rank, reference.alpha};
  const bool is_budget = options.rule == "parameter_budget" || options.rule == "latency_budget";
  if (options.rank > 0) {
    size.rank = options.rank;
  } else if (options.rescale && !is_budget) {
    const int64_t budget = reference.rank * SumOfFeatures(importance.modules);
    const int64_t kept_sum = SumOfFeatures(kept);
    size.rank =
        options.round == "nearest" ? (2 * budget + kept_sum) / (2 * kept_sum) : budget / kept_sum;
  }
  int64_t most = size.rank;
  for (const ModuleScore& module : kept)
    most = std::min({most, module.in_features, module.out_features});
  if (size.rank > most) {
    warnings->push_back(absl::StrCat("score.select: rank ", size.rank,
                                     " is more than the smallest ", "kept linear has; it becomes ",
                                     most));
    size.rank = most;
  }
  const double ratio = static_cast<double>(size.rank) / static_cast<double>(reference.rank);
  if (options.alpha > 0) {
    size.alpha = options.alpha;
  } else if (size.rank != reference.rank) {
    size.alpha = reference.alpha * (reference.rslora ? std::sqrt(ratio) : ratio);
  }
  return size;
}

ordered_json RuleJson(const Importance& importance, const SelectOptions& options,
                      const std::string& importance_sha256) {
  const bool has_k = options.rule == "top_k_per_layer" || options.rule == "top_k";
  ordered_json rule = {{"rule", options.rule}};
  if (has_k) {
    rule["k"] = options.k;
  } else {
    rule["budget"] = options.budget;
  }
  rule["score"] = importance.score;
  rule["reference_rank"] =
      importance.reference ? ordered_json(importance.reference->rank) : ordered_json(nullptr);
  rule["rescale"] = has_k && options.rescale && options.rank == 0;
  rule["round"] = options.round;
  rule["importance_sha256"] = importance_sha256;
  return rule;
}

}  // namespace

absl::StatusOr<LatencyTable> ParseLatencyTable(const json& file, const std::string& origin) {
  GRAFT_RETURN_IF_ERROR(CheckKnownKeys(file, {"format", "version", "roles"}, origin));
  GRAFT_ASSIGN_OR_RETURN(const std::string format, GetString(file, "format", origin));
  if (format != "graft-latency") {
    return InputError(absl::StrCat(origin, ": format: found \"", Printable(format),
                                   "\", must be \"graft-latency\""));
  }
  GRAFT_RETURN_IF_ERROR(GetInt(file, "version", 1, 1, origin).status());
  GRAFT_ASSIGN_OR_RETURN(const json* roles, GetObject(file, "roles", origin));
  LatencyTable table;
  for (const auto& [name, entry] : roles->items()) {
    const std::optional<Role> role = models::ParseRole(name);
    const std::string where = absl::StrCat(origin, ": roles: ", Printable(name));
    if (!role || !models::IsLinear(*role))
      return InputError(absl::StrCat(where, ": must be the role of a linear, as attn.q"));
    GRAFT_RETURN_IF_ERROR(CheckKnownKeys(entry, {"first", "next"}, where));
    GRAFT_ASSIGN_OR_RETURN(table.roles[*role].first, GetReal(entry, "first", 1e-9, 1e9, where));
    GRAFT_ASSIGN_OR_RETURN(table.roles[*role].next, GetReal(entry, "next", 1e-9, 1e9, where));
  }
  return table;
}

absl::StatusOr<LatencyTable> ReadLatencyTable(const std::string& path) {
  GRAFT_ASSIGN_OR_RETURN(const json file, ReadJsonFile(path, {}, /*follow_links=*/true));
  return ParseLatencyTable(file, Printable(path, 512));
}

absl::StatusOr<Selection> Select(const Importance& importance, const SelectOptions& options,
                                 const LatencyTable& latency,
                                 const std::string& importance_sha256) {
  GRAFT_ASSIGN_OR_RETURN(Modules kept, Keep(importance, options, latency));
  if (kept.empty()) {
    return RecipeError(absl::StrCat("score.select.budget: found ", FormatReal(options.budget),
                                    ", which keeps no module by rule ", options.rule));
  }
  std::sort(kept.begin(), kept.end(),
            [](const ModuleScore& a, const ModuleScore& b) { return a.site < b.site; });
  Selection selection;
  GRAFT_ASSIGN_OR_RETURN(const Size size,
                         SizeOfKept(importance, kept, options, &selection.warnings));
  selection.rule = RuleJson(importance, options, importance_sha256);
  selection.setting.model_type = importance.model_type;
  selection.setting.num_layers = importance.num_layers;
  for (const ModuleScore& module : kept) {
    std::vector<KeptLayer>& layers = selection.setting.keep;
    if (layers.empty() || layers.back().layer != module.site.layer)
      layers.push_back({module.site.layer, {}, size.rank, size.alpha});
    layers.back().roles.push_back(module.site.role);
  }
  return selection;
}

std::string SettingText(const Selection& selection) {
  ordered_json keep = ordered_json::array();
  for (const KeptLayer& layer : selection.setting.keep) {
    ordered_json roles = ordered_json::array();
    for (const Role role : layer.roles) roles.push_back(models::RoleName(role));
    keep.push_back(
        {{"layer", layer.layer}, {"roles", roles}, {"rank", layer.rank}, {"alpha", layer.alpha}});
  }
  return WriteJson({{"format", kSettingFormat},
                    {"version", 1},
                    {"model_type", selection.setting.model_type},
                    {"num_layers", selection.setting.num_layers},
                    {"selection", selection.rule},
                    {"keep", keep}});
}

}  // namespace graft::adapters
