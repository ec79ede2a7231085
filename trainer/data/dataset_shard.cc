#include "trainer/data/dataset_shard.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::trainer {
namespace {

using models::TensorType;
using models::TensorView;

// Sets *column to the 1-D tensor `name`; `count` < 0: any length.
template <typename T>
absl::Status LoadColumn(const models::SafetensorsFile& file, const std::string& where,
                        const char* name, TensorType type, int64_t count, Column<T>* column) {
  GRAFT_ASSIGN_OR_RETURN(const TensorView view, file.Find(name));
  if (view.type != type || view.shape.size() != 1 || (count >= 0 && view.shape[0] != count)) {
    return InputError(absl::StrCat(where, ": ", name, ": is ", models::TensorTypeName(view.type),
                                   " [", absl::StrJoin(view.shape, ", "), "], must be ",
                                   models::TensorTypeName(type), " [",
                                   count < 0 ? std::string("any") : absl::StrCat(count), "]"));
  }
  const auto size = static_cast<std::size_t>(view.shape[0]);
  if (reinterpret_cast<uintptr_t>(view.data) % alignof(T) == 0) {
    column->values = {reinterpret_cast<const T*>(view.data), size};
    return absl::OkStatus();
  }
  column->copy.resize(size);
  std::memcpy(column->copy.data(), view.data, static_cast<std::size_t>(view.bytes));
  column->values = column->copy;
  return absl::OkStatus();
}

// Offsets start at 0, rise, and end at the number of values.
absl::Status CheckOffsets(const std::string& where, const char* name,
                          std::span<const int64_t> offsets, std::size_t num_values,
                          const char* values_name) {
  if (offsets[0] != 0) {
    return InputError(absl::StrCat(where, ": ", name, "[0]: found ", offsets[0], ", must be 0"));
  }
  for (std::size_t i = 1; i < offsets.size(); ++i) {
    if (offsets[i] <= offsets[i - 1]) {
      return InputError(absl::StrCat(where, ": ", name, "[", i, "]: found ", offsets[i],
                                     ", must be larger than the one before, ", offsets[i - 1]));
    }
  }
  if (offsets.back() != static_cast<int64_t>(num_values)) {
    return InputError(absl::StrCat(where, ": ", name, "[", offsets.size() - 1, "]: found ",
                                   offsets.back(), ", must be the length of ", values_name, ", ",
                                   num_values));
  }
  return absl::OkStatus();
}

std::span<const int32_t> Slice(std::span<const int32_t> values, std::span<const int64_t> offsets,
                               int64_t index) {
  if (offsets.empty()) return {};
  const auto i = static_cast<std::size_t>(index);
  return values.subspan(static_cast<std::size_t>(offsets[i]),
                        static_cast<std::size_t>(offsets[i + 1] - offsets[i]));
}

}  // namespace

absl::StatusOr<std::unique_ptr<const DatasetShard>> DatasetShard::Open(const std::string& path,
                                                                       int64_t num_samples,
                                                                       const DatasetInfo& info,
                                                                       bool follow_links) {
  std::unique_ptr<DatasetShard> shard(new DatasetShard());
  shard->where_ = Printable(path, 512);
  shard->kind_ = info.kind;
  shard->num_samples_ = num_samples;
  models::SafetensorsFile::Options options;
  options.follow_links = follow_links;
  GRAFT_ASSIGN_OR_RETURN(shard->file_, models::SafetensorsFile::Open(path, options));
  GRAFT_RETURN_IF_ERROR(shard->CheckNames(info));
  GRAFT_RETURN_IF_ERROR(shard->Load(info));
  GRAFT_RETURN_IF_ERROR(shard->CheckSamples(info));
  return std::unique_ptr<const DatasetShard>(std::move(shard));
}

absl::Status DatasetShard::CheckNames(const DatasetInfo& info) const {
  std::vector<std::string> known = {"input_ids",  "offsets",     "prompt_lengths",
                                    "sample_ids", "encoder_ids", "encoder_offsets"};
  if (info.kind == DataKind::kCausalLm) {
    known.push_back("loss_mask");
  } else if (info.kind == DataKind::kSeq2Seq) {
    known.insert(known.end(), {"target_ids", "target_offsets"});
  } else {
    known.push_back("labels");
  }
  for (const auto& [name, view] : file_->tensors()) {
    if (std::count(known.begin(), known.end(), name) == 0) {
      return InputError(absl::StrCat(where_, ": tensor `", Printable(name), "` is not part of a ",
                                     DataKindName(info.kind), " shard", DidYouMean(name, known)));
    }
  }
  return absl::OkStatus();
}

absl::Status DatasetShard::Load(const DatasetInfo& info) {
  GRAFT_RETURN_IF_ERROR(
      LoadColumn(*file_, where_, "offsets", TensorType::kInt64, num_samples_ + 1, &offsets_));
  GRAFT_RETURN_IF_ERROR(
      LoadColumn(*file_, where_, "input_ids", TensorType::kInt32, -1, &input_ids_));
  GRAFT_RETURN_IF_ERROR(LoadColumn(*file_, where_, "prompt_lengths", TensorType::kInt32,
                                   num_samples_, &prompt_lengths_));
  GRAFT_RETURN_IF_ERROR(
      LoadColumn(*file_, where_, "sample_ids", TensorType::kInt64, num_samples_, &sample_ids_));
  if (file_->tensors().count("encoder_ids") + file_->tensors().count("encoder_offsets") > 0) {
    GRAFT_RETURN_IF_ERROR(
        LoadColumn(*file_, where_, "encoder_ids", TensorType::kInt32, -1, &encoder_ids_));
    GRAFT_RETURN_IF_ERROR(LoadColumn(*file_, where_, "encoder_offsets", TensorType::kInt64,
                                     num_samples_ + 1, &encoder_offsets_));
  }
  return LoadKind(info);
}

absl::Status DatasetShard::LoadKind(const DatasetInfo& info) {
  switch (info.kind) {
    case DataKind::kCausalLm:
      return LoadColumn(*file_, where_, "loss_mask", TensorType::kUint8, num_tokens(), &loss_mask_);
    case DataKind::kClassification:
      return LoadColumn(*file_, where_, "labels", TensorType::kInt64, num_samples_, &labels_);
    case DataKind::kRegression:
      return LoadColumn(*file_, where_, "labels", TensorType::kFloat32, num_samples_, &values_);
    case DataKind::kSeq2Seq:
      GRAFT_RETURN_IF_ERROR(
          LoadColumn(*file_, where_, "target_ids", TensorType::kInt32, -1, &target_ids_));
      return LoadColumn(*file_, where_, "target_offsets", TensorType::kInt64, num_samples_ + 1,
                        &target_offsets_);
  }
  return absl::OkStatus();
}

absl::Status DatasetShard::CheckSamples(const DatasetInfo& info) {
  GRAFT_RETURN_IF_ERROR(
      CheckOffsets(where_, "offsets", offsets_.values, input_ids_.values.size(), "input_ids"));
  for (int64_t i = 0; i < num_samples_; ++i) {
    const auto index = static_cast<std::size_t>(i);
    const int64_t tokens = length(i);
    if (tokens > info.max_length) {
      return InputError(absl::StrCat(where_, ": offsets[", i + 1, "]: the sample has ", tokens,
                                     " tokens, max_length in dataset.json is ", info.max_length));
    }
    const int64_t prompt = prompt_lengths_.values[index];
    const int64_t least = info.kind == DataKind::kCausalLm ? 0 : tokens;
    if (prompt < least || prompt > tokens) {
      return InputError(absl::StrCat(where_, ": prompt_lengths[", i, "]: found ", prompt,
                                     ", must be ", least, " to ", tokens));
    }
    longest_ = std::max(longest_, tokens);
  }
  GRAFT_RETURN_IF_ERROR(CheckIds("input_ids", input_ids_.values, info.vocab_size));
  if (!encoder_offsets_.values.empty()) {
    GRAFT_RETURN_IF_ERROR(CheckOffsets(where_, "encoder_offsets", encoder_offsets_.values,
                                       encoder_ids_.values.size(), "encoder_ids"));
    const auto negative = std::find_if(encoder_ids_.values.begin(), encoder_ids_.values.end(),
                                       [](int32_t id) { return id < 0; });
    if (negative != encoder_ids_.values.end()) {
      return InputError(absl::StrCat(where_, ": encoder_ids[",
                                     negative - encoder_ids_.values.begin(), "]: found ", *negative,
                                     ", must not be negative"));
    }
  }
  if (info.kind == DataKind::kCausalLm) return CheckMask();
  if (info.kind != DataKind::kSeq2Seq) return CheckLabels(info);
  GRAFT_RETURN_IF_ERROR(CheckOffsets(where_, "target_offsets", target_offsets_.values,
                                     target_ids_.values.size(), "target_ids"));
  num_trained_tokens_ = static_cast<int64_t>(target_ids_.values.size());
  return CheckIds("target_ids", target_ids_.values, info.vocab_size);
}

absl::Status DatasetShard::CheckIds(const char* name, std::span<const int32_t> ids,
                                    int64_t vocab_size) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      return InputError(absl::StrCat(where_, ": ", name, "[", i, "]: found ", ids[i],
                                     ", must be 0 to ", vocab_size - 1,
                                     " (vocab_size in dataset.json)"));
    }
    max_token_id_ = std::max(max_token_id_, ids[i]);
  }
  return absl::OkStatus();
}

absl::Status DatasetShard::CheckMask() {
  const std::span<const uint8_t> mask = loss_mask_.values;
  for (std::size_t i = 0; i < mask.size(); ++i) {
    if (mask[i] > 1) {
      return InputError(
          absl::StrCat(where_, ": loss_mask[", i, "]: found ", int{mask[i]}, ", must be 0 or 1"));
    }
  }
  trained_.reserve(static_cast<std::size_t>(num_samples_));
  for (std::size_t i = 0; i + 1 < offsets_.values.size(); ++i) {
    const auto begin = static_cast<std::size_t>(offsets_.values[i]);
    const auto end = static_cast<std::size_t>(offsets_.values[i + 1]);
    int32_t trained = 0;
    for (std::size_t t = begin + 1; t < end; ++t) trained += mask[t];
    trained_.push_back(trained);
    num_trained_tokens_ += trained;
    ignored_first_targets_ += mask[begin];
  }
  return absl::OkStatus();
}

absl::Status DatasetShard::CheckLabels(const DatasetInfo& info) const {
  const auto num_labels = static_cast<int64_t>(info.labels.size());
  for (std::size_t i = 0; i < labels_.values.size(); ++i) {
    if (labels_.values[i] < 0 || labels_.values[i] >= num_labels) {
      return InputError(absl::StrCat(where_, ": labels[", i, "]: found ", labels_.values[i],
                                     " for sample ", sample_ids_.values[i], ", must be 0 to ",
                                     num_labels - 1, " (labels in dataset.json)"));
    }
  }
  for (std::size_t i = 0; i < values_.values.size(); ++i) {
    if (!std::isfinite(values_.values[i])) {
      return InputError(absl::StrCat(where_, ": labels[", i, "]: found ",
                                     FormatReal(values_.values[i]), ", must be finite"));
    }
  }
  return absl::OkStatus();
}

int64_t DatasetShard::length(int64_t index) const {
  const auto i = static_cast<std::size_t>(index);
  return offsets_.values[i + 1] - offsets_.values[i];
}

int64_t DatasetShard::trained_tokens(int64_t index) const {
  if (kind_ == DataKind::kCausalLm) return trained_[static_cast<std::size_t>(index)];
  if (kind_ != DataKind::kSeq2Seq) return 1;
  return static_cast<int64_t>(Slice(target_ids_.values, target_offsets_.values, index).size());
}

int64_t DatasetShard::total_tokens(int64_t index) const {
  return length(index) +
         static_cast<int64_t>(Slice(target_ids_.values, target_offsets_.values, index).size());
}

Sample DatasetShard::at(int64_t index) const {
  const auto i = static_cast<std::size_t>(index);
  Sample sample;
  sample.input_ids = Slice(input_ids_.values, offsets_.values, index);
  if (kind_ == DataKind::kCausalLm) {
    sample.loss_mask = loss_mask_.values.subspan(static_cast<std::size_t>(offsets_.values[i]),
                                                 sample.input_ids.size());
  }
  sample.prompt_length = prompt_lengths_.values[i];
  sample.sample_id = sample_ids_.values[i];
  if (kind_ == DataKind::kClassification) sample.label = labels_.values[i];
  if (kind_ == DataKind::kRegression) sample.value = values_.values[i];
  sample.target_ids = Slice(target_ids_.values, target_offsets_.values, index);
  sample.encoder_ids = Slice(encoder_ids_.values, encoder_offsets_.values, index);
  return sample;
}

}  // namespace graft::trainer
