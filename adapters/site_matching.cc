#include "adapters/site_matching.h"

#include <algorithm>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::adapters {
namespace {

using models::Role;
using models::SiteSpec;

constexpr const char* kAll = "all";

absl::Status PatternError(const std::string& pattern, const std::string& why,
                          const std::vector<SiteSpec>& here) {
  std::vector<std::string> choices = RoleNamesOf(here);
  if (std::any_of(here.begin(), here.end(),
                  [](const SiteSpec& site) { return models::IsLinear(site.id.role); })) {
    choices.push_back(kAll);
  }
  return RecipeError(absl::StrCat("adapter.sites: found `", Printable(pattern), "`, ", why,
                                  "; allowed: ", JoinNames(choices), DidYouMean(pattern, choices)));
}

}  // namespace

absl::StatusOr<std::vector<SiteSpec>> MatchRoles(const std::vector<std::string>& patterns,
                                                 const std::vector<Role>& allowed,
                                                 const std::vector<SiteSpec>& model_sites) {
  std::vector<SiteSpec> offered;
  for (const SiteSpec& site : model_sites) {
    if (std::count(allowed.begin(), allowed.end(), site.id.role) != 0) offered.push_back(site);
  }
  if (patterns.empty()) return RecipeError("adapter.sites: found an empty list, must name a role");
  std::set<Role> wanted;
  for (const std::string& pattern : patterns) {
    const std::optional<Role> role = models::ParseRole(pattern);
    if (!role && pattern != kAll) return PatternError(pattern, "which is no role", offered);
    size_t matches = 0;
    for (const SiteSpec& site : offered) {
      if (role ? site.id.role != *role : !models::IsLinear(site.id.role)) continue;
      wanted.insert(site.id.role);
      ++matches;
    }
    if (matches == 0) {
      return PatternError(
          pattern, "which no chosen layer of the model has as a place for this method", offered);
    }
  }
  std::vector<SiteSpec> matched;
  for (const SiteSpec& site : offered) {
    if (wanted.count(site.id.role) != 0) matched.push_back(site);
  }
  return matched;
}

std::vector<SiteSpec> SelectLayers(const std::vector<int>& layers,
                                   const std::vector<SiteSpec>& model_sites) {
  std::vector<SiteSpec> selected;
  for (const SiteSpec& site : model_sites) {
    if (site.id.role == Role::kEmbed ||
        std::count(layers.begin(), layers.end(), site.id.layer) != 0) {
      selected.push_back(site);
    }
  }
  return selected;
}

std::vector<Role> LinearRoles() {
  std::vector<Role> roles;
  for (const Role role : models::AllRoles()) {
    if (models::IsLinear(role)) roles.push_back(role);
  }
  return roles;
}

std::vector<std::string> RoleNamesOf(const std::vector<SiteSpec>& sites) {
  std::set<Role> roles;
  for (const SiteSpec& site : sites) roles.insert(site.id.role);
  std::vector<std::string> names;
  for (const Role role : roles) names.push_back(models::RoleName(role));
  return names;
}

}  // namespace graft::adapters
