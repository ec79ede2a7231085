// A prepared data set (docs: data format): dataset.json and its memory-mapped shards, checked in
// full when it is opened. Used by everything that reads samples: training, evaluation, scoring,
// generation, `graft inspect`. It neither orders samples (batch_plan.h) nor lays them into
// micro-batches (collate.h). No LibTorch.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace graft::trainer {

enum class DataKind { kCausalLm, kClassification, kRegression, kSeq2Seq };
const char* DataKindName(DataKind kind);  // "causal_lm", ...

// What dataset.json says.
struct DatasetInfo {
  DataKind kind = DataKind::kCausalLm;
  int64_t vocab_size = 0;
  std::optional<std::string> tokenizer_sha256;  // none: the ids came from elsewhere
  int64_t num_samples = 0;
  int64_t num_tokens = 0;
  int64_t num_trained_tokens = 0;
  int64_t max_length = 0;  // no sample has more tokens
  std::string template_name;
  std::string loss_on;
  std::vector<std::string> labels;  // names, classification
};

// One sample; the spans live as long as the data set.
struct Sample {
  std::span<const int32_t> input_ids;
  std::span<const uint8_t> loss_mask;   // causal_lm: 1 = trained target, predicted from one before
  int64_t prompt_length = 0;            // leading tokens that are the prompt
  int64_t sample_id = 0;                // stable
  int64_t label = 0;                    // classification: index into DatasetInfo::labels
  float value = 0.0f;                   // regression
  std::span<const int32_t> target_ids;  // seq2seq, end token included
  std::span<const int32_t>
      encoder_ids;  // the prompt in a separate encoder's vocabulary; may be empty
};

class DatasetShard;

class Dataset {
 public:
  struct Options {
    bool follow_links = false;
    bool verify_hashes = true;  // SHA-256 of every shard against dataset.json
  };
  // Kind input: the first violation, with shard, tensor, index, value and what is allowed.
  static absl::StatusOr<std::shared_ptr<const Dataset>> Open(const std::string& folder,
                                                             Options options);
  static absl::StatusOr<std::shared_ptr<const Dataset>> Open(const std::string& folder) {
    return Open(folder, Options());
  }
  ~Dataset();

  const std::string& folder() const { return folder_; }
  const DatasetInfo& info() const { return info_; }
  int64_t size() const { return info_.num_samples; }
  // 0 <= index < size(), in data set order.
  Sample at(int64_t index) const;
  int64_t length(int64_t index) const;  // input tokens
  // What the loss of a batch is divided by: causal_lm tokens with loss_mask 1 that are not first;
  // seq2seq target tokens; else 1.
  int64_t trained_tokens(int64_t index) const;
  // Tokens that a step's `tokens` counts: input and seq2seq target tokens.
  int64_t total_tokens(int64_t index) const;

  bool has_encoder_ids() const;  // of every sample
  int64_t longest() const { return longest_; }            // tokens of the longest sample
  int32_t max_token_id() const { return max_token_id_; }  // of input and target ids
  // First tokens with loss_mask 1, which are never targets; the caller warns when there are any.
  int64_t ignored_first_targets() const { return ignored_first_targets_; }
  // SHA-256 (hex) over the bytes of dataset.json and the hashes of the shards.
  const std::string& fingerprint() const { return fingerprint_; }

  // Kind input when a token id or a length does not fit the model.
  absl::Status CheckFitsModel(int64_t vocab_size, int64_t longest_sequence) const;

 private:
  struct Place {
    const DatasetShard* shard;
    int64_t index;
  };
  struct ShardEntry;
  Dataset();
  absl::Status ReadHeader(const std::string& text, std::vector<ShardEntry>* entries);
  absl::Status OpenShards(const std::vector<ShardEntry>& entries, Options options);
  absl::Status CheckTotals() const;
  Place Locate(int64_t index) const;

  std::string folder_;
  DatasetInfo info_;
  std::vector<std::unique_ptr<const DatasetShard>> shards_;
  std::vector<int64_t> first_sample_;  // of each shard, and the end
  int64_t longest_ = 0;
  int32_t max_token_id_ = 0;
  int64_t ignored_first_targets_ = 0;
  std::string fingerprint_;
};

}  // namespace graft::trainer
