#include "adapters/fused_sites.h"

#include <algorithm>
#include <map>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "adapters/peft_config.h"
#include "base/status.h"

namespace graft::adapters {

using models::SiteSpec;

std::string ParameterName(const SiteSpec& site, const std::string& suffix) {
  if (!site.fused()) return PeftName(site.module, suffix);
  const std::string role = models::RoleName(site.id.role);
  return PeftName(site.module, absl::StrCat(role.substr(role.find('.') + 1), ".", suffix));
}

std::vector<std::vector<SiteSpec>> FusedGroups(const std::vector<SiteSpec>& matched) {
  std::vector<std::vector<SiteSpec>> groups;
  std::map<std::string, size_t> group_of;
  for (const SiteSpec& site : matched) {
    if (!site.fused()) continue;
    const auto [found, inserted] = group_of.emplace(site.module, groups.size());
    if (inserted) groups.emplace_back();
    groups[found->second].push_back(site);
  }
  return groups;
}

torch::Tensor TakeTensor(const std::string& name, NamedTensors* tensors) {
  const auto found = std::find_if(tensors->begin(), tensors->end(),
                                  [&](const auto& entry) { return entry.first == name; });
  if (found == tensors->end()) return {};
  torch::Tensor tensor = found->second;
  tensors->erase(found);
  return tensor;
}

NamedTensors PackFused(const std::vector<SiteSpec>& matched, const FusedVector& vector,
                       NamedTensors parameters) {
  for (const std::vector<SiteSpec>& group : FusedGroups(matched)) {
    torch::Tensor joined;
    for (const SiteSpec& site : group) {
      const torch::Tensor part = TakeTensor(ParameterName(site, vector.suffix), &parameters);
      std::vector<int64_t> shape = part.sizes().vec();
      shape[0] = site.fused_features;
      if (!joined.defined()) joined = at::full(shape, vector.fill, part.options());
      joined.narrow(0, site.fused_offset, site.out_features).copy_(part.detach());
    }
    parameters.emplace_back(PeftName(group[0].module, vector.suffix), joined);
  }
  return parameters;
}

absl::StatusOr<NamedTensors> UnpackFused(const std::vector<SiteSpec>& matched,
                                         const FusedVector& vector, NamedTensors folder,
                                         const std::string& origin) {
  for (const std::vector<SiteSpec>& group : FusedGroups(matched)) {
    const std::string name = PeftName(group[0].module, vector.suffix);
    const torch::Tensor joined = TakeTensor(name, &folder);
    if (!joined.defined()) return InputError(absl::StrCat(origin, ": missing ", name));
    if (joined.dim() == 0 || joined.size(0) != group[0].fused_features) {
      return InputError(
          absl::StrCat(origin, ": ", name, " has ", joined.dim() == 0 ? 1 : joined.size(0),
                       " rows, the model's module has ", group[0].fused_features, " outputs"));
    }
    torch::Tensor rest = joined.clone();
    for (const SiteSpec& site : group) {
      folder.emplace_back(ParameterName(site, vector.suffix),
                          joined.narrow(0, site.fused_offset, site.out_features).clone());
      rest.narrow(0, site.fused_offset, site.out_features).fill_(vector.fill);
    }
    if (!rest.eq(vector.fill).all().item<bool>()) {
      return InputError(absl::StrCat(origin, ": ", name, " is not ", vector.fill,
                                     " everywhere outside the roles that the recipe adapts"));
    }
  }
  return folder;
}

}  // namespace graft::adapters
