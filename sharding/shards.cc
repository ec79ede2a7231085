#include "sharding/shards.h"

#include <ATen/ATen.h>

#include <cstring>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/status.h"
#include "models/weights/safetensors.h"

namespace graft::sharding {
namespace {

constexpr char kParam[] = "param/";
constexpr char kExpAvg[] = "exp_avg/";
constexpr char kExpAvgSq[] = "exp_avg_sq/";

// Numbers of the set's parameters by shard file.
std::map<std::string, std::vector<size_t>> ByShard(const adapters::AdapterSet& set,
                                                   int num_layers) {
  std::map<std::string, std::vector<size_t>> shards;
  for (size_t i = 0; i < set.parameters().size(); ++i) {
    shards[ShardName(set.parameters()[i].layer, num_layers)].push_back(i);
  }
  return shards;
}

absl::StatusOr<CheckpointFile> Describe(const std::string& folder, const std::string& name) {
  CheckpointFile file;
  file.file = absl::StrCat(kShardFolder, "/", name);
  const std::string path = JoinPath(folder, file.file);
  GRAFT_RETURN_IF_ERROR(OpenForReading(path, {}, &file.bytes).status());
  GRAFT_ASSIGN_OR_RETURN(file.sha256, Sha256File(path));
  return file;
}

absl::Status CopyTensor(const models::SafetensorsFile& file, const std::string& name,
                        const std::vector<int64_t>& shape, torch::Tensor out) {
  GRAFT_ASSIGN_OR_RETURN(const models::TensorView view, file.Find(name));
  if (view.type != models::TensorType::kFloat32 || view.shape != shape) {
    return InputError(absl::StrCat(file.path(), ": tensor `", name,
                                   "`: found another type or shape than the adapter's F32 (",
                                   out.numel(), " numbers)"));
  }
  std::memcpy(out.data_ptr(), view.data, static_cast<size_t>(view.bytes));
  if (!at::isfinite(out).all().item<bool>()) {
    return InputError(absl::StrCat(file.path(), ": tensor `", name, "` holds a non-finite number"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string ShardName(int layer, int num_layers) {
  if (layer < num_layers) return absl::StrFormat("layer-%04d.safetensors", layer);
  return layer == num_layers ? "prompt.safetensors" : "head.safetensors";
}

absl::StatusOr<std::vector<CheckpointFile>> WriteShards(const std::string& folder, int num_layers,
                                                        const TrainedState& state) {
  const torch::Tensor values = state.set->values().detach().to(at::kCPU);
  const torch::Tensor exp_avg = state.exp_avg.to(at::kCPU);
  const torch::Tensor exp_avg_sq = state.exp_avg_sq.to(at::kCPU);
  std::vector<CheckpointFile> files;
  for (const auto& [name, members] : ByShard(*state.set, num_layers)) {
    std::vector<models::TensorToWrite> tensors;
    for (size_t i : members) {
      const adapters::NamedParameter& parameter = state.set->parameters()[i];
      const int64_t offset = state.set->offset(i);
      auto add = [&](const char* prefix, const torch::Tensor& flat) {
        tensors.push_back({prefix + parameter.name, models::TensorType::kFloat32,
                           parameter.value.sizes().vec(), flat.data_ptr<float>() + offset});
      };
      add(kParam, values);
      add(kExpAvg, exp_avg);
      add(kExpAvgSq, exp_avg_sq);
    }
    const std::string path = JoinPath(JoinPath(folder, kShardFolder), name);
    GRAFT_RETURN_IF_ERROR(models::WriteSafetensors(path, std::move(tensors),
                                                   {{"format", "graft-shard"}, {"version", "1"}}));
    GRAFT_ASSIGN_OR_RETURN(CheckpointFile file, Describe(folder, name));
    files.push_back(std::move(file));
  }
  return files;
}

absl::StatusOr<FlatState> ReadShards(const std::string& folder, int num_layers,
                                     const adapters::AdapterSet& set) {
  FlatState flat{at::empty({set.size()}), at::empty({set.size()}), at::empty({set.size()})};
  for (const auto& [name, members] : ByShard(set, num_layers)) {
    const std::string path = JoinPath(JoinPath(folder, kShardFolder), name);
    GRAFT_ASSIGN_OR_RETURN(const std::shared_ptr<const models::SafetensorsFile> file,
                           models::SafetensorsFile::Open(path));
    if (file->tensors().size() != 3 * members.size()) {
      return InputError(absl::StrCat(path, ": found ", file->tensors().size(),
                                     " tensors, the adapter has ", 3 * members.size(), " here"));
    }
    for (size_t i : members) {
      const adapters::NamedParameter& parameter = set.parameters()[i];
      const std::vector<int64_t> shape = parameter.value.sizes().vec();
      auto part = [&](const torch::Tensor& whole) {
        return whole.narrow(0, set.offset(i), parameter.value.numel());
      };
      GRAFT_RETURN_IF_ERROR(CopyTensor(*file, kParam + parameter.name, shape, part(flat.values)));
      GRAFT_RETURN_IF_ERROR(CopyTensor(*file, kExpAvg + parameter.name, shape, part(flat.exp_avg)));
      GRAFT_RETURN_IF_ERROR(
          CopyTensor(*file, kExpAvgSq + parameter.name, shape, part(flat.exp_avg_sq)));
      if (part(flat.exp_avg_sq).lt(0).any().item<bool>()) {
        return InputError(absl::StrCat(path, ": tensor `", kExpAvgSq, parameter.name,
                                       "` holds a negative number"));
      }
    }
  }
  return flat;
}

}  // namespace graft::sharding
