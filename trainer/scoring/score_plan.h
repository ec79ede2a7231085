// What `graft score` computes, as work items, and what their results say (methods.md 16.2, 16.3).
// Pure: the items follow from recipe, model and data alone, never from ranks, so importance.json
// has the same bytes on every layout. Who computes an item: scoring_runner.h. Links without
// LibTorch.
//
// Results are float64 numbers. n = samples of the item's shard; by kind:
// - loo, keep_one: for each layer of the block that has modules the clean copy's l_n, then those of
// each
//   module's variant, in role order;
// - taylor: t_n of each module, then the loss sums of the micro-batches;
// - lora_drop: of each module n sums of squared edits and n of squared outputs, then loss sums;
// - loss: loss sums alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "adapters/importance_file.h"
#include "models/role.h"
#include "trainer/coordinator/work_item.h"

namespace graft::trainer {

struct ScoreTask {
  std::string method;                     // one of adapters::kScoreMethods
  std::vector<models::SiteSpec> modules;  // what is scored, by (layer, role)
  int num_layers = 0;
  std::vector<int64_t> tokens;  // of each sample that is measured on
  std::vector<int64_t> trained_tokens;
  adapters::ScoreGrid grid;

  adapters::SampleRange samples() const { return {trained_tokens, grid.shard_samples}; }
  int64_t num_tokens() const;
};

// Modules of the layers [first, end).
std::vector<models::SiteSpec> ModulesOf(const std::vector<models::SiteSpec>& modules, int first,
                                        int end);

// None for scores that run no forward pass.
std::vector<WorkItem> ScoreItems(const ScoreTask& task);
// Layers that an item's samples pass through, all variants together; of one module at a time, the
// naive way, for all `kind` items.
int64_t LayerForwards(const ScoreTask& task, const WorkItem& item);
int64_t NaiveLayerForwards(const ScoreTask& task);

// What number `index` of an item's result is: "layer 3 attn.q", samples [first_sample, first_sample
// + num_samples) of the item.
struct ResultPlace {
  std::string what;
  int64_t first_sample = 0, num_samples = 1;
};
ResultPlace PlaceOf(const ScoreTask& task, const WorkItem& item, int64_t index);

std::string PackResult(const std::vector<double>& values);
std::vector<double> UnpackResult(const std::string& bytes);

// Everything that was measured, joined over the items.
struct Measured {
  adapters::AblationValues ablation;
  adapters::SampleValues first;   // taylor: t_n; lora_drop: edits
  adapters::SampleValues second;  // lora_drop: outputs
  std::optional<double> base_loss, bare_loss;
};
// `results` in the order of `items`. Kind bug when one has another size than its item says.
absl::StatusOr<Measured> JoinResults(const ScoreTask& task, const std::vector<WorkItem>& items,
                                     const std::vector<std::string>& results);

// The scores of task.modules by task.method, but for those that need the adapter's tensors or a
// file (magnitude, sensitivity).
std::vector<adapters::ModuleScore> ScoresOf(const ScoreTask& task, const Measured& measured,
                                            uint64_t seed);

}  // namespace graft::trainer
