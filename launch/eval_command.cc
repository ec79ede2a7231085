// `graft eval`: the loss of adapter.init_from (or of the bare model) on data.eval; one JSON object
// on stdout.
#include <cstdio>

#include <nlohmann/json.hpp>

#include "base/status.h"
#include "launch/commands.h"
#include "trainer/evaluator.h"
#include "trainer/open_data.h"

namespace graft::launch {

absl::Status EvalCommand(CommandContext& context) {
  const trainer::Recipe& recipe = context.recipe;
  GRAFT_RETURN_IF_ERROR(trainer::CheckSupported(recipe));
  GRAFT_ASSIGN_OR_RETURN(const auto data, trainer::OpenData(recipe, recipe.data.eval, "data.eval",
                                                            context.world.all()));
  GRAFT_ASSIGN_OR_RETURN(
      const auto model,
      trainer::LoadedModel::Load(recipe, context.world, trainer::WorkShapeOf(*data, 0)));
  GRAFT_RETURN_IF_ERROR(trainer::CheckFitsModel(*data, *model, "data.eval"));
  const int64_t num_samples = trainer::LimitedSize(*data, recipe.data.max_samples);
  const trainer::EvalResult result =
      trainer::Evaluate(*model, *data, num_samples, recipe.optim.micro_batch);
  if (context.world.rank() != 0) return absl::OkStatus();
  nlohmann::ordered_json json = {{"loss", result.loss},
                                 {"tokens", result.tokens},
                                 {"trained_tokens", result.trained_tokens},
                                 {"samples", result.samples}};
  for (const auto& [name, value] : result.metrics) json[name] = value;
  std::printf("%s\n", json.dump().c_str());
  return absl::OkStatus();
}

}  // namespace graft::launch
