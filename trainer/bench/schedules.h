// `graft bench schedules`: the recipe's model and method on these ranks, step by step under each
// schedule of the pipeline: time, idle share, and what `plan` says of it. Forward and backward
// passes and transfers alone, of samples of one length with random tokens; without a data set, an
// optimizer or the sum over replicas.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "comm/world.h"
#include "trainer/config.h"

namespace graft::trainer {

// The results (docs/measuring.md has the fields). All ranks must call; all get the same. Kind
// recipe, before anything is measured, without a pipeline or a method, for another task than
// causal_lm, or where a schedule cannot cut the layers or deal out the micro-batches. Throws kind
// peer.
absl::StatusOr<nlohmann::ordered_json> MeasureSchedules(const Recipe& recipe, comm::World& world);

// One line for each schedule.
std::string SchedulesTable(const nlohmann::ordered_json& results);

}  // namespace graft::trainer
