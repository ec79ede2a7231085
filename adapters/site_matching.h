// Turns the recipe's `adapter.sites` into sites of the model. Used by every method's MatchSites and
// by whoever applies `adapter.layers`. Pure; no tensors.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/role.h"

namespace graft::adapters {

// The sites of `model_sites` whose role one of `patterns` names, in the order of `model_sites`.
// A pattern is a role name, or `all` = every linear. Error kind recipe naming the pattern and
// listing what is allowed, when a role is unknown, is not in `allowed`, or no layer here has it.
absl::StatusOr<std::vector<models::SiteSpec>> MatchRoles(
    const std::vector<std::string>& patterns, const std::vector<models::Role>& allowed,
    const std::vector<models::SiteSpec>& model_sites);

// The sites of these layers. `embed`, which belongs to no layer, stays.
std::vector<models::SiteSpec> SelectLayers(const std::vector<int>& layers,
                                           const std::vector<models::SiteSpec>& model_sites);

// The roles that are linears.
std::vector<models::Role> LinearRoles();

// Names of the roles that occur, each once, in the fixed order.
std::vector<std::string> RoleNamesOf(const std::vector<models::SiteSpec>& sites);

}  // namespace graft::adapters
