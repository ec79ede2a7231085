// `graft bench tenants`: what many tenants on one backbone cost, method against method, beside the
// bare backbone and a merged model. Every combination of batch, mix, prompt and answer length runs
// `repeats` times, the variants taking turns so that drift of the machine hits all alike; ratios
// are medians of ratios within a turn. One rank with the whole model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "trainer/config.h"
#include "trainer/loaded_model.h"

namespace graft::trainer {

// A combination of recipe.tenants.
struct TenantCell {
  int64_t batch = 0;
  std::string mix;
  int64_t prompt = 0, new_tokens = 0;
  // Different adapters in the batch, and the one of a row; -1: none.
  int64_t num_tenants() const;
  int64_t TenantOf(int64_t row) const;
};

// Kind recipe for a number that is none, or a combination that the model's positions do not hold.
absl::StatusOr<std::vector<TenantCell>> TenantCells(const Recipe& recipe,
                                                    const models::ModelConfig& config);

// The results (docs/tenants.md has the fields); writes settings, and adapters where
// tenants.keep_adapters asks for them, to `folder`. `model` has no adapter.
absl::StatusOr<nlohmann::ordered_json> RunTenantBench(const Recipe& recipe, LoadedModel& model,
                                                      const std::string& folder);

// One line for each variant of each combination.
std::string TenantTableText(const nlohmann::ordered_json& results);

}  // namespace graft::trainer
