#include "sharding/shards.h"

#include <ATen/ATen.h>

#include <cstring>
#include <memory>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/hash.h"
#include "base/status.h"
#include "base/text.h"
#include "models/weights/safetensors.h"
#include "sharding/checkpoint_folder.h"

namespace graft::sharding {
namespace {

// A kind of tensors and its flat (P) values.
using Kind = std::pair<std::string, torch::Tensor>;

std::vector<Kind> KindsOf(const TrainedState& state) {
  std::vector<Kind> kinds = {{"param/", state.set->values().detach()},
                             {"exp_avg/", state.exp_avg},
                             {"exp_avg_sq/", state.exp_avg_sq}};
  for (const auto& [kind, values] : state.averages) kinds.emplace_back(kind + "/", values);
  return kinds;
}

std::map<std::string, const TensorEntry*> EntriesOf(const Manifest& manifest) {
  std::map<std::string, const TensorEntry*> entries;
  for (const TensorEntry& entry : manifest.tensors) entries[entry.key] = &entry;
  return entries;
}

absl::Status CopyTensor(const models::SafetensorsFile& file, const std::string& key,
                        const adapters::NamedParameter& parameter, float* out) {
  GRAFT_ASSIGN_OR_RETURN(const models::TensorView view, file.Find(key));
  if (view.shape != parameter.value.sizes().vec()) {
    return InputError(absl::StrCat(file.path(), ": tensor `", key,
                                   "`: has another shape than the "
                                   "adapter's parameter"));
  }
  std::memcpy(out, view.data, static_cast<size_t>(view.bytes));
  return absl::OkStatus();
}

}  // namespace

StateSnapshot::StateSnapshot(const TrainedState& state, int num_layers,
                             const std::map<std::string, uint64_t>& first_word,
                             const std::function<bool(int layer)>& owns) {
  const adapters::AdapterSet& set = *state.set;
  int64_t size = 0;
  std::vector<const adapters::NamedParameter*> mine;
  for (size_t i = 0; i < set.parameters().size(); ++i) {
    const adapters::NamedParameter& parameter = set.parameters()[i];
    if (!owns(parameter.layer)) continue;
    mine.push_back(&parameter);
    pieces_.push_back({set.offset(i), size, parameter.value.numel()});
    size += parameter.value.numel();
  }
  // Zeros, so that the pages are there before the first save has to be quick.
  values_ = at::zeros({size});
  exp_avg_ = at::zeros({size});
  exp_avg_sq_ = at::zeros({size});
  for (size_t k = 0; k < state.averages.size(); ++k) averages_.push_back(at::zeros({size}));
  for (size_t i = 0; i < mine.size(); ++i) {
    const adapters::NamedParameter& parameter = *mine[i];
    std::vector<std::pair<std::string, const float*>> averages;
    for (size_t k = 0; k < averages_.size(); ++k)
      averages.emplace_back(state.averages[k].first,
                            averages_[k].data_ptr<float>() + pieces_[i].to);
    units_[UnitOf(parameter.name, parameter.layer, num_layers)].push_back(
        {{parameter.name, parameter.value.sizes().vec()},
         first_word.at(parameter.name),
         values_.data_ptr<float>() + pieces_[i].to,
         exp_avg_.data_ptr<float>() + pieces_[i].to,
         exp_avg_sq_.data_ptr<float>() + pieces_[i].to,
         std::move(averages)});
  }
}

void StateSnapshot::Copy(const TrainedState& state) {
  at::NoGradGuard no_grad;
  for (const Piece& piece : pieces_) {
    const auto copy = [&piece](torch::Tensor& to, const torch::Tensor& from) {
      to.narrow(0, piece.to, piece.count).copy_(from.narrow(0, piece.from, piece.count));
    };
    copy(values_, state.set->values().detach());
    copy(exp_avg_, state.exp_avg);
    copy(exp_avg_sq_, state.exp_avg_sq);
    for (size_t k = 0; k < averages_.size(); ++k) copy(averages_[k], state.averages[k].second);
  }
}

absl::StatusOr<FlatState> ReadShards(const std::string& folder, const Manifest& manifest,
                                     const TrainedState& state) {
  const adapters::AdapterSet& set = *state.set;
  std::vector<Kind> flats = KindsOf(state);
  for (auto& [kind, values] : flats) values = at::empty({set.size()});
  const std::map<std::string, const TensorEntry*> entries = EntriesOf(manifest);
  std::map<std::string, std::shared_ptr<const models::SafetensorsFile>> shards;
  for (const CheckpointFile& file : manifest.files) shards[file.file];  // opened on first use
  for (size_t i = 0; i < set.parameters().size(); ++i) {
    const adapters::NamedParameter& parameter = set.parameters()[i];
    const auto entry = entries.find("param/" + parameter.name);
    if (entry == entries.end()) {
      return InputError(absl::StrCat(folder, ": holds no `", parameter.name, "`"));
    }
    std::shared_ptr<const models::SafetensorsFile>& shard = shards[entry->second->file];
    if (shard == nullptr) {
      for (const CheckpointFile& file : manifest.files) {
        if (file.file != entry->second->file) continue;
        GRAFT_ASSIGN_OR_RETURN(shard, CheckShard(folder, manifest, file));
      }
    }
    const int64_t at = set.offset(i);
    for (const auto& [kind, values] : flats) {
      GRAFT_RETURN_IF_ERROR(
          CopyTensor(*shard, kind + parameter.name, parameter, values.data_ptr<float>() + at));
    }
  }
  FlatState flat{flats[0].second, flats[1].second, flats[2].second};
  for (size_t k = 3; k < flats.size(); ++k) flat.averages.push_back(flats[k].second);
  return flat;
}

absl::Status CheckLiveTensors(const Manifest& manifest, const TrainedState& state) {
  const std::map<std::string, const TensorEntry*> entries = EntriesOf(manifest);
  std::vector<Kind> flats = KindsOf(state);
  for (auto& [kind, values] : flats) values = values.to(at::kCPU);
  for (size_t i = 0; i < state.set->parameters().size(); ++i) {
    const adapters::NamedParameter& parameter = state.set->parameters()[i];
    const auto bytes = static_cast<size_t>(parameter.value.numel()) * sizeof(float);
    for (const auto& [kind, values] : flats) {
      const std::string key = kind + parameter.name;
      const uint64_t hash = Hash64(values.data_ptr<float>() + state.set->offset(i), bytes);
      if (hash == entries.at(key)->hash64) continue;
      return BugError(absl::StrCat("resume: `", key, "` in memory has hash64 ", Hex64(hash),
                                   ", the manifest says ", Hex64(entries.at(key)->hash64)));
    }
  }
  return absl::OkStatus();
}

}  // namespace graft::sharding
