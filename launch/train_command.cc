// `graft train`
#include "base/status.h"
#include "launch/commands.h"
#include "trainer/trainer.h"

namespace graft::launch {

absl::Status TrainCommand(CommandContext& context) {
  GRAFT_ASSIGN_OR_RETURN(const std::unique_ptr<trainer::Trainer> run,
                         trainer::Trainer::Build(context.recipe, context.world));
  return run->Run();
}

}  // namespace graft::launch
