// One shard of a prepared data set: its tensors as typed columns, every value checked. Used by
// dataset.cc only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/weights/safetensors.h"
#include "trainer/data/dataset.h"

namespace graft::trainer {

// Values of a tensor: a view into the mapping, or a copy where the file holds them unaligned.
template <typename T>
struct Column {
  std::span<const T> values;
  std::vector<T> copy;
};

class DatasetShard {
 public:
  // `num_samples`: what dataset.json says of this shard. Errors: kind input with shard, tensor,
  // index and value.
  static absl::StatusOr<std::unique_ptr<const DatasetShard>> Open(const std::string& path,
                                                                  int64_t num_samples,
                                                                  const DatasetInfo& info,
                                                                  bool follow_links);
  Sample at(int64_t index) const;
  int64_t length(int64_t index) const;
  int64_t trained_tokens(int64_t index) const;
  int64_t total_tokens(int64_t index) const;

  int64_t num_tokens() const { return static_cast<int64_t>(input_ids_.values.size()); }
  int64_t num_trained_tokens() const { return num_trained_tokens_; }
  int64_t longest() const { return longest_; }
  int32_t max_token_id() const { return max_token_id_; }
  int64_t ignored_first_targets() const { return ignored_first_targets_; }
  bool has_encoder_ids() const { return !encoder_offsets_.values.empty(); }

 private:
  DatasetShard() = default;
  absl::Status Load(const DatasetInfo& info);
  absl::Status LoadKind(const DatasetInfo& info);
  absl::Status CheckNames(const DatasetInfo& info) const;
  absl::Status CheckSamples(const DatasetInfo& info);
  absl::Status CheckIds(const char* name, std::span<const int32_t> ids, int64_t vocab_size);
  absl::Status CheckMask();
  absl::Status CheckLabels(const DatasetInfo& info) const;

  std::string where_;
  DataKind kind_ = DataKind::kCausalLm;
  int64_t num_samples_ = 0;
  std::shared_ptr<const models::SafetensorsFile> file_;
  Column<int32_t> input_ids_, prompt_lengths_, target_ids_, encoder_ids_;
  Column<int64_t> offsets_, sample_ids_, labels_, target_offsets_, encoder_offsets_;
  Column<float> values_;
  Column<uint8_t> loss_mask_;
  std::vector<int32_t> trained_;  // causal_lm: trained tokens of each sample
  int64_t num_trained_tokens_ = 0;
  int64_t longest_ = 0;
  int32_t max_token_id_ = 0;
  int64_t ignored_first_targets_ = 0;
};

}  // namespace graft::trainer
