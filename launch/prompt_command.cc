// `graft prompt`: what idpg, lopa or para make of each request of data.eval, each an adapter folder
// <run.output>/prompts/<sample id> that huggingface/peft loads: PROMPT_TUNING, for para IA3.
#include <set>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/logging.h"
#include "base/status.h"
#include "comm/agree.h"
#include "launch/commands.h"
#include "sharding/adapter_folder.h"
#include "trainer/data/batch_plan.h"
#include "trainer/open_data.h"
#include "trainer/request_adapter.h"

namespace graft::launch {
namespace {

// Each sample has a folder of its own.
absl::Status CheckDifferentIds(const trainer::Dataset& data, int64_t num_samples) {
  std::set<int64_t> seen;
  for (int64_t i = 0; i < num_samples; ++i) {
    const int64_t id = data.at(i).sample_id;
    if (!seen.insert(id).second) {
      return InputError(absl::StrCat(data.folder(), ": sample_ids: ", id,
                                     " stands there twice; `prompt` names a folder by each"));
    }
  }
  return absl::OkStatus();
}

absl::Status WritePrompts(const trainer::Dataset& data, const std::vector<int64_t>& samples,
                          const std::string& folder, trainer::LoadedModel& model) {
  for (const int64_t index : samples) {
    GRAFT_ASSIGN_OR_RETURN(const trainer::RequestAdapter adapter,
                           trainer::MakeRequestAdapter(model, data, index));
    GRAFT_RETURN_IF_ERROR(sharding::WriteAdapterFolder(
        JoinPath(folder, absl::StrCat(data.at(index).sample_id)), adapter.config, adapter.tensors));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PromptCommand(CommandContext& context) {
  const trainer::Recipe& recipe = context.recipe;
  comm::Communicator& all = context.world.all();
  if (recipe.task.type != "causal_lm") {
    return RecipeError(absl::StrCat("task.type: found \"", recipe.task.type,
                                    "\", `graft prompt` serves texts; allowed: causal_lm"));
  }
  GRAFT_RETURN_IF_ERROR(trainer::CheckSupported(recipe));
  GRAFT_RETURN_IF_ERROR(trainer::CheckWholeWeights(recipe, "prompt"));
  GRAFT_ASSIGN_OR_RETURN(const auto data,
                         trainer::OpenData(recipe, recipe.data.eval, "data.eval", all));
  GRAFT_ASSIGN_OR_RETURN(
      const auto model,
      trainer::LoadedModel::Load(recipe, context.world, trainer::WorkShapeOf(*data, 0)));
  GRAFT_RETURN_IF_ERROR(trainer::CheckMakesRequestAdapters(*model));
  GRAFT_RETURN_IF_ERROR(trainer::CheckFitsModel(*data, *model, "data.eval"));
  const int64_t num_samples = trainer::LimitedSize(*data, recipe.data.max_samples);
  GRAFT_RETURN_IF_ERROR(CheckDifferentIds(*data, num_samples));
  const std::string folder = JoinPath(recipe.run.output, "prompts");
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(all, MakeDirs(folder)));
  absl::Status status;
  for (const auto& samples : trainer::EvaluationMicroBatches(
           num_samples, /*micro_batch=*/16, model->grid().data, model->data_rank())) {
    if (status.ok()) status = WritePrompts(*data, samples, folder, *model);
  }
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(all, status));
  LOG(INFO) << num_samples << " requests in " << folder;
  return absl::OkStatus();
}

}  // namespace graft::launch
