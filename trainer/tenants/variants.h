// The adapters that `bench tenants` compares: a method at a size, and random tenants of it that
// edit something. Used by bench.cc.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/recipe_yaml.h"
#include "models/backbone.h"
#include "trainer/config.h"
#include "trainer/tenants/mixed_rows.h"
#include "trainer/tenants/tenant.h"

namespace graft::trainer {

struct Variant {
  std::string name;
  std::string method;         // "none": no adapter
  std::string size = "rank";  // or "parameters", as tenants.sizes
  TenantKernel kernel = TenantKernel::kGrouped;
  Recipe recipe = {};  // with the method and its keys
  int64_t parameters = 0;
};

// The bare backbone, then what recipe.tenants asks for, then the recipe's own adapter where it
// names one (adapter.init_from). FanLoRA's settings are written to `folder`: of layer i it keeps
// the tenants.modules linears from number i * modules on, so that each kind of linear is kept
// equally often. Kind recipe where a size does not fit the model; io.
absl::StatusOr<std::vector<Variant>> MakeVariants(const Recipe& recipe,
                                                  const models::ModelConfig& config,
                                                  const std::string& folder);

// Tenant `number` of the recipe's method: its first values and N(0, deviation^2) on all of them.
absl::StatusOr<StoredAdapter> RandomTenant(const Recipe& recipe, models::Backbone& backbone,
                                           int64_t number, double deviation = 0.02);

}  // namespace graft::trainer
