// `graft score`: how much each LoRA module matters, and which are kept (docs/fanlora.md).
#include "launch/commands.h"
#include "trainer/scoring/scorer.h"

namespace graft::launch {

absl::Status ScoreCommand(CommandContext& context) {
  return trainer::Score(context.recipe, context.world);
}

}  // namespace graft::launch
