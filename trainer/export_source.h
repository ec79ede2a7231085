// Where `export` takes an adapter from: an adapter folder, a checkpoint, or the output folder of a
// run. Used by the `export` command. No ranks.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "sharding/gather.h"
#include "trainer/config.h"
#include "trainer/loaded_model.h"

namespace graft::trainer {

// The adapter's parameters, checked against what the recipe's method has at the matched sites of the
// whole model. Of a run's output: its adapter folder, else its newest valid checkpoint. Kind input,
// io; kind recipe when a checkpoint was made with other `adapter` keys than the recipe's.
absl::StatusOr<sharding::NamedTensors> ReadExportSource(const Recipe& recipe,
                                                        const AdapterChoice& adapter);

}  // namespace graft::trainer
