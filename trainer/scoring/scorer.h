// The `score` command: measures how much each LoRA module matters, over all ranks, and keeps the
// most important ones (methods.md 16, docs/fanlora.md). Writes importance.json and setting.json
// into score.output, whose journal lets a stopped run go on.
#pragma once

#include "absl/status/status.h"
#include "comm/world.h"
#include "trainer/config.h"

namespace graft::trainer {

// With score.from: selects again from that file, on rank 0, without model or data. Else all ranks
// score. All ranks must call; all get the same status: kind recipe or input for what cannot be
// scored, stopped, numeric, bug and io as of RunWorkItems (trainer/coordinator/item_run.h); then
// neither file is written.
absl::Status Score(const Recipe& recipe, comm::World& world);

}  // namespace graft::trainer
