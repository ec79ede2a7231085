// `graft export`: an adapter folder, or with export.merge=true a merged model folder, from a run, a
// checkpoint or an adapter folder.
#include <nlohmann/json.hpp>

#include "adapters/peft_config.h"
#include "base/logging.h"
#include "base/status.h"
#include "launch/commands.h"
#include "sharding/adapter_folder.h"
#include "trainer/export_source.h"
#include "trainer/merge_model.h"
#include "trainer/open_data.h"

namespace graft::launch {
namespace {

std::string WithoutLastSlash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

// The data set whose labels say what the task head's outputs are; null without a head.
absl::StatusOr<std::shared_ptr<const trainer::Dataset>> OpenLabels(CommandContext& context) {
  const trainer::Recipe& recipe = context.recipe;
  if (recipe.task.type == "causal_lm" || recipe.task.type == "seq2seq") return nullptr;
  const bool train = !recipe.data.train.empty();
  if (!train) {
    GRAFT_RETURN_IF_ERROR(trainer::RequireKeys(recipe, {"data.eval"}, "export with a task head"));
  }
  return trainer::OpenData(recipe, train ? recipe.data.train : recipe.data.eval,
                           train ? "data.train" : "data.eval", context.world.all());
}

}  // namespace

absl::Status ExportCommand(CommandContext& context) {
  const trainer::Recipe& recipe = context.recipe;
  GRAFT_RETURN_IF_ERROR(trainer::RequireKeys(recipe, {"model", "adapter.method"}, "export"));
  GRAFT_RETURN_IF_ERROR(trainer::CheckSupported(recipe));
  GRAFT_ASSIGN_OR_RETURN(const models::ModelConfig config, trainer::ReadRecipeModel(recipe));
  GRAFT_ASSIGN_OR_RETURN(const auto data, OpenLabels(context));
  const int64_t outputs = data == nullptr ? 0 : trainer::WorkShapeOf(*data, 0).outputs;
  GRAFT_ASSIGN_OR_RETURN(const trainer::AdapterChoice adapter,
                         trainer::ChooseAdapter(recipe, config, outputs));
  GRAFT_ASSIGN_OR_RETURN(const sharding::NamedTensors tensors,
                         trainer::ReadExportSource(recipe, adapter));
  const std::string to = WithoutLastSlash(recipe.export_.to);
  if (adapter.method->trains_backbone() && !recipe.export_.merge) {
    return RecipeError("export.merge: found false, method full leaves a model; allowed: true");
  }
  if (recipe.export_.merge) {
    GRAFT_RETURN_IF_ERROR(trainer::RequireKeys(recipe, {"model.path"}, "export with merge"));
    trainer::MergeOptions options{.follow_links = recipe.model.follow_links};
    options.trained_dtype = trainer::RecipeDtype(recipe);
    if (data != nullptr) options.labels = data->info().labels;
    GRAFT_RETURN_IF_ERROR(trainer::MergeModel(recipe.model.path, config, *adapter.method,
                                              adapter.matched, tensors, to, options));
    LOG(INFO) << "merged model in " << to;
    return absl::OkStatus();
  }
  const std::string base = recipe.model.path.empty() ? recipe.model.shape : recipe.model.path;
  const adapters::PeftContext context_of_base{.base_model_name_or_path = base,
                                              .task_type = trainer::PeftTaskType(recipe)};
  adapters::FolderContent content;
  if (recipe.export_.as == "peft") {
    GRAFT_ASSIGN_OR_RETURN(content,
                           adapter.method->AsPeft(adapter.matched, context_of_base, tensors));
  } else {
    content = {adapter.method->PeftConfig(adapter.matched, context_of_base),
               adapter.method->ToFolder(adapter.matched, tensors)};
  }
  GRAFT_RETURN_IF_ERROR(sharding::WriteAdapterFolder(to, content.config, content.tensors));
  LOG(INFO) << "adapter in " << to;
  return absl::OkStatus();
}

}  // namespace graft::launch
