// The engine's decoding steps on a device: their numbers go there in one copy, the greedy choice of
// all rows comes back in one, and on a GPU a step whose work was launched before is replayed as a
// CUDA graph (models/gpu_graph.h). Used by the engine; one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include <torch/types.h>

#include "absl/status/status.h"
#include "models/backbone.h"
#include "models/gpu_graph.h"
#include "models/site.h"

namespace graft::trainer {

// What a step was.
enum class GraphUse {
  kNone,      // launched kernel by kernel
  kRecorded,  // that, and recorded
  kReplayed,
};

class DevicePass {
 public:
  // For steps of at most `width` rows. `cache` has fixed room. Both must outlive it.
  DevicePass(models::Backbone& backbone, models::KvCache& cache, int64_t width, bool graphs);

  struct Result {
    torch::Tensor logits;         // (N, V), there; of a replay, until the next step
    std::vector<int64_t> tokens;  // the greedy choices (GreedyTokens)
    GraphUse graph = GraphUse::kNone;
  };
  // Each segment of `batch` is one row of a running sequence. `guests`: the hooks of the pass, null
  // = none. `layout`: steps with the same one launch the same work on the same memory; null: this
  // one must not be recorded.
  Result Run(const models::MicroBatch& batch, const models::SiteTable* guests,
             const std::vector<int64_t>* layout, models::SequenceStates& states);

 private:
  // The results of a pass, where they are made.
  struct Outputs {
    torch::Tensor logits, tokens;
  };
  struct Recorded {
    bool seen = false;  // a second step of its kind is recorded: many never come again
    std::unique_ptr<models::GpuGraph> graph;
    Outputs outputs;
  };
  void CopyInputs(const models::MicroBatch& batch);
  Outputs Forward(const models::MicroBatch& batch, const models::SiteTable* guests,
                  models::SequenceStates& states);
  // Replays, or records what comes a second time; kNone: neither.
  GraphUse RunRecorded(const std::function<Outputs()>& forward, Recorded* recorded,
                       Outputs* outputs);

  // Recorded, replayed once, and found to give the same tokens.
  absl::Status Record(const std::function<Outputs()>& forward, Recorded* recorded);

  models::Backbone& backbone_;
  models::KvCache& cache_;
  bool graphs_;
  // (3, width) int64: tokens, positions, places; there, and in host memory that copies start from.
  torch::Tensor inputs_, host_inputs_;
  std::map<std::vector<int64_t>, Recorded> recorded_;  // by layout
};

}  // namespace graft::trainer
