#include "adapters/lora_fused.h"

#include <cmath>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "adapters/fused_sites.h"
#include "adapters/peft_config.h"
#include "base/json.h"
#include "base/status.h"

namespace graft::adapters {

using models::SiteSpec;
using nlohmann::json;

LoraPatterns SplitPatterns(const std::vector<SiteSpec>& matched, int64_t rank, double alpha,
                           bool rslora) {
  LoraPatterns patterns;
  for (const std::vector<SiteSpec>& group : FusedGroups(matched)) {
    if (group.size() == 1) continue;
    const auto parts = static_cast<double>(group.size());
    patterns.rank[group[0].module] = rank * static_cast<int64_t>(group.size());
    patterns.alpha[group[0].module] = alpha * (rslora ? std::sqrt(parts) : parts);
  }
  return patterns;
}

absl::Status CheckPatterns(const json& config, const LoraPatterns& expected,
                           const std::string& origin) {
  for (const auto& [key, wanted] :
       {std::pair<const char*, const json&>{"rank_pattern", expected.rank},
        {"alpha_pattern", expected.alpha}}) {
    const json found = HasValue(config, key) ? config.at(key) : json::object();
    if (found == wanted) continue;
    return InputError(absl::StrCat(origin, ": ", key, " is ", DescribeJson(found),
                                   ", but the recipe's roles and rank give ",
                                   wanted.empty() ? "none" : wanted.dump(),
                                   "; a folder that was trained on the whole shared module is read "
                                   "with adapter.fused: joint"));
  }
  return absl::OkStatus();
}

NamedTensors JoinSplitLora(const std::vector<SiteSpec>& matched, NamedTensors parameters) {
  for (const std::vector<SiteSpec>& group : FusedGroups(matched)) {
    std::vector<torch::Tensor> a_parts, b_parts;
    for (const SiteSpec& site : group) {
      a_parts.push_back(TakeTensor(ParameterName(site, kLoraAName), &parameters).detach());
      b_parts.push_back(TakeTensor(ParameterName(site, kLoraBName), &parameters).detach());
    }
    const int64_t rank = a_parts[0].size(0);
    const torch::Tensor b = at::zeros(
        {group[0].fused_features, rank * static_cast<int64_t>(group.size())}, b_parts[0].options());
    for (size_t i = 0; i < group.size(); ++i) {
      b.narrow(0, group[i].fused_offset, group[i].out_features)
          .narrow(1, static_cast<int64_t>(i) * rank, rank)
          .copy_(b_parts[i]);
    }
    parameters.emplace_back(PeftName(group[0].module, kLoraAName), at::cat(a_parts));
    parameters.emplace_back(PeftName(group[0].module, kLoraBName), b);
  }
  return parameters;
}

absl::StatusOr<NamedTensors> CutSplitLora(const std::vector<SiteSpec>& matched,
                                          const RankOf& rank_of, NamedTensors folder,
                                          const std::string& origin) {
  for (const std::vector<SiteSpec>& group : FusedGroups(matched)) {
    const std::string a_name = PeftName(group[0].module, kLoraAName);
    const std::string b_name = PeftName(group[0].module, kLoraBName);
    const int64_t rank = rank_of(group[0]);
    const int64_t joined = rank * static_cast<int64_t>(group.size());
    TensorCheck check(folder);
    const torch::Tensor a = check.Expect(a_name, {joined, group[0].in_features});
    const torch::Tensor b = check.Expect(b_name, {group[0].fused_features, joined});
    GRAFT_RETURN_IF_ERROR(check.Result(origin));
    torch::Tensor rest = b.clone();
    for (size_t i = 0; i < group.size(); ++i) {
      const SiteSpec& site = group[i];
      const int64_t begin = static_cast<int64_t>(i) * rank;
      const auto block = [&](const torch::Tensor& whole) {
        return whole.narrow(0, site.fused_offset, site.out_features).narrow(1, begin, rank);
      };
      folder.emplace_back(ParameterName(site, kLoraAName), a.narrow(0, begin, rank).clone());
      folder.emplace_back(ParameterName(site, kLoraBName), block(b).clone());
      block(rest).zero_();
    }
    if (rest.count_nonzero().item<int64_t>() > 0) {
      return InputError(absl::StrCat(
          origin, ": ", b_name, " is not block diagonal over ", group.size(),
          " roles, which adapter.fused: split needs; it is read with adapter.fused: joint"));
    }
    TakeTensor(a_name, &folder);
    TakeTensor(b_name, &folder);
  }
  return folder;
}

}  // namespace graft::adapters
