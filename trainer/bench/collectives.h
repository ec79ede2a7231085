// `graft bench collectives`: what graft's own communication costs on these ranks: the all-reduce of
// gradients over the replicas of a stage, hidden states from stage to stage, and the control vector
// that ends every step. By size, through host memory or between GPUs as the recipe's `parallel`
// says.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "comm/world.h"
#include "trainer/config.h"

namespace graft::trainer {

// The results (docs/measuring.md has the fields). With a model and a method in the recipe the sizes
// that it would move are measured too. All ranks must call; all get the same. Kind recipe on one
// rank, for which there is nothing to measure. Throws kind peer.
absl::StatusOr<nlohmann::ordered_json> MeasureCollectives(const Recipe& recipe, comm::World& world);

// One line for each operation and size.
std::string CollectivesTable(const nlohmann::ordered_json& results);

}  // namespace graft::trainer
