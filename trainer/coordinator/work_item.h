// The unit of scoring work: plain data that says what to compute, on which samples, for which
// layers (methods.md 16.2, reliability.md 5). The list of items comes from the recipe alone, never
// from the number of ranks, and every rank makes the same list, so that messages carry an item's
// place in it. A result is bytes (float64 blocks) that nobody here looks into. No LibTorch, no MPI.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace graft::trainer {

struct WorkItem {
  std::string kind;          // what to compute: "loo", "keep_one", "taylor", "lora_drop", ...
  int64_t first_sample = 0;  // the data shard, in data set order
  int64_t num_samples = 0;
  int32_t first_layer = 0;  // the block of layers; num_layers 0 = the shard alone
  int32_t num_layers = 0;
  int32_t micro_batch = 1;  // samples that run together: part of the item, never of the layout
  // Expected work in any unit, equal for all items (layer forwards x tokens). Orders the items and
  // predicts times; not part of the id, so a better estimate keeps old results.
  double cost = 1;
};

// What all items of a run have in common and results depend on.
struct RunFacts {
  std::string model_fingerprint;
  std::string adapter_fingerprint;
  std::string data_fingerprint;
  std::string score;  // score.method
  std::string dtype;
  int64_t threads = 1;  // per rank
};

// 64 hex digits each. A journal belongs to one run key; results are kept under the item's id.
std::string RunKey(const RunFacts& facts);
std::string ItemId(const std::string& run_key, const WorkItem& item);
// "loo of layers 4-7, samples 32-63": for messages.
std::string ItemName(const WorkItem& item);

}  // namespace graft::trainer
