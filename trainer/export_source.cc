#include "trainer/export_source.h"

#include <ATen/ATen.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "models/weights/safetensors.h"
#include "sharding/adapter_folder.h"
#include "sharding/checkpoint_folder.h"
#include "sharding/resume_rules.h"
#include "trainer/run_manifest.h"

namespace graft::trainer {
namespace {

constexpr char kParameterPrefix[] = "param/";
constexpr int64_t kMaxRecipeBytes = int64_t{1} << 20;

absl::StatusOr<sharding::NamedTensors> FromAdapterFolder(const std::string& path,
                                                         const AdapterChoice& adapter) {
  GRAFT_ASSIGN_OR_RETURN(const sharding::AdapterFolder folder, sharding::ReadAdapterFolder(path));
  return sharding::FolderParameters(folder, *adapter.method, adapter.matched);
}

TextMap AdapterKeys(const TextMap& fixed) {
  TextMap keys;
  for (const auto& [key, value] : fixed) {
    if (absl::StartsWith(key, "adapter.")) keys[key] = value;
  }
  return keys;
}

absl::Status AppendParameters(const std::string& path, sharding::NamedTensors* tensors) {
  GRAFT_ASSIGN_OR_RETURN(const auto file, models::SafetensorsFile::Open(path));
  for (const auto& [name, view] : file->tensors()) {
    if (!absl::StartsWith(name, kParameterPrefix)) continue;
    if (view.type != models::TensorType::kFloat32) {
      return InputError(absl::StrCat(path, ": tensor ", name, ": dtype is ",
                                     models::TensorTypeName(view.type), ", must be F32"));
    }
    tensors->emplace_back(
        name.substr(sizeof(kParameterPrefix) - 1),
        at::from_blob(const_cast<uint8_t*>(view.data), view.shape, torch::kFloat).clone());
  }
  return absl::OkStatus();
}

absl::StatusOr<sharding::NamedTensors> FromCheckpoint(const std::string& path, const Recipe& recipe,
                                                      const AdapterChoice& adapter) {
  GRAFT_ASSIGN_OR_RETURN(const sharding::Manifest manifest, sharding::ValidateCheckpoint(path));
  GRAFT_ASSIGN_OR_RETURN(const std::string saved_recipe,
                         ReadFile(JoinPath(path, manifest.recipe.file), kMaxRecipeBytes));
  GRAFT_ASSIGN_OR_RETURN(const TextMap saved, FixedRecipeTexts(saved_recipe));
  GRAFT_ASSIGN_OR_RETURN(const TextMap current, FixedRecipeTexts(RecipeYaml(recipe)));
  const absl::Status same = sharding::CompareFixed(AdapterKeys(saved), AdapterKeys(current), path);
  if (!same.ok()) return RecipeError(std::string(same.message()));
  sharding::NamedTensors tensors;
  for (const sharding::CheckpointFile& file : manifest.files) {
    if (absl::EndsWith(file.file, ".safetensors"))
      GRAFT_RETURN_IF_ERROR(AppendParameters(JoinPath(path, file.file), &tensors));
  }
  GRAFT_RETURN_IF_ERROR(
      adapters::CheckAdapterTensors(*adapter.method, adapter.matched, tensors, path));
  return tensors;
}

}  // namespace

absl::StatusOr<sharding::NamedTensors> ReadExportSource(const Recipe& recipe,
                                                        const AdapterChoice& adapter) {
  const std::string& from = recipe.export_.from;
  if (PathExists(JoinPath(from, "adapter_config.json"))) return FromAdapterFolder(from, adapter);
  if (PathExists(JoinPath(from, sharding::kManifestName)))
    return FromCheckpoint(from, recipe, adapter);
  const std::string finished = JoinPath(from, "adapter");
  if (PathExists(JoinPath(finished, "adapter_config.json")))
    return FromAdapterFolder(finished, adapter);
  const std::string checkpoints = JoinPath(from, "checkpoints");
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         sharding::ListStepFolders(checkpoints));
  for (const std::string& name : names) {
    if (sharding::ValidateCheckpoint(JoinPath(checkpoints, name)).ok()) {
      return FromCheckpoint(JoinPath(checkpoints, name), recipe, adapter);
    }
  }
  return InputError(absl::StrCat(
      "export.from: ", from,
      " is neither an adapter folder, nor a checkpoint, nor the output of a run that holds one"));
}

}  // namespace graft::trainer
