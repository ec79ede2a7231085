// Writes a merged model folder: the model's weights with an adapter folded in, beside its config
// and tokenizer files, so that HF transformers loads it. Merging happens in float32 and rounds once
// to the folder's dtype; a task head is written in float32, as it was trained. Weights that method
// `full` has trained stand in place of the model's. Used by `export` and by training. No ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "adapters/adapter.h"
#include "models/model_config.h"
#include "sharding/gather.h"

namespace graft::trainer {

struct MergeOptions {
  bool follow_links = false;             // model.follow_links
  int64_t shard_bytes = 5'000'000'000;   // largest weight file; more of them get an index
  std::vector<std::string> labels = {};  // names of the task head's classes; none: a regression
  // Of a method that trains the backbone: in which dtype its weights are written.
  torch::Dtype trained_dtype = torch::kFloat32;
  bool replace = false;  // a model folder at `to` makes room
};

// `to` must not exist unless it may be replaced; it appears complete or not at all. At most one
// weight file's worth of merged tensors lies in memory, but all that method `full` has trained.
// Errors: kind recipe when the method does not merge, or needs a bias that this model_type cannot
// have; kind input, io from the files.
absl::Status MergeModel(const std::string& model_folder, const models::ModelConfig& config,
                        const adapters::Method& method,
                        const std::vector<models::SiteSpec>& matched,
                        const sharding::NamedTensors& adapter, const std::string& to,
                        const MergeOptions& options);

}  // namespace graft::trainer
