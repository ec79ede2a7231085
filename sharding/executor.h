// Runs the micro-batches of one step through this rank's part of the pipeline, in the order of the
// schedule: receive or embed, layers, send or loss, and back where something is trained. Used by
// the trainer; gradients end up in AdapterSet::gradients(), everything after that (reduction,
// clipping, update) is the trainer's.
//
// Every stage knows the whole micro-batches (each rank reads them from its own data set), so only
// hidden states (N, D) and their gradients travel, in the model's dtype, and no shapes.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include <torch/types.h>

#include "comm/communicator.h"
#include "models/micro_batch.h"
#include "models/site.h"
#include "sharding/layer_watch.h"
#include "sharding/plan.h"
#include "sharding/schedule.h"
#include "sharding/stage.h"
#include "sharding/step_graph.h"
#include "sharding/transfers.h"

namespace graft::sharding {

class FrozenShards;

struct ExecutorOptions {
  ScheduleKind schedule = ScheduleKind::k1F1B;
  torch::Dtype dtype = torch::kFloat32;  // of hidden states
  torch::Device device = torch::kCPU;
  // parallel.shard_weights: where the stage's layers come from. Null: they are whole.
  std::shared_ptr<FrozenShards> shards = nullptr;
  // parallel.cuda_graphs: what records the micro-batches of training steps (step_graph.h). For one
  // stage of one part, in 1F1B's order. Null: all are launched.
  PassRecorder pass_recorder = nullptr;
};

// One operation as it ran; seconds since the begin of the step on this rank.
struct OpRecord {
  Op op;
  double begin_seconds = 0;
  double end_seconds = 0;
};

struct StepResult {
  // Of each micro-batch, sum of its losses (nats; regression: squared errors). Last stage; empty on
  // the others.
  std::vector<double> losses;
  double loss_sum = 0;  // of `losses`, in order
  // Evaluation, last stage, of each micro-batch. A task with labels: the head's outputs (samples,
  // C). Else (targets) bool: whether the model would say the target.
  std::vector<torch::Tensor> outputs;  // in host memory
  int64_t begin_ns = 0;                // of the step on this rank, comm::MonotonicNanos
  double compute_seconds = 0;  // inside operations, without waiting; on a GPU all but the waiting
  double blocked_seconds = 0;  // waiting for neighbours
  double step_seconds = 0;
  std::vector<OpRecord> timeline;  // without the waiting in front of each operation
};

class Executor {
 public:
  // All must outlive the executor. pipeline: rank in it = stage. Before the first forward pass.
  Executor(const Plan& plan, Stage& stage, comm::Communicator& pipeline,
           const ExecutorOptions& options);
  ~Executor();

  // Before the first step; all stages of the replica must call (StageTransfers::Connect).
  void Connect();

  // Adds the gradients of the SUM of all cross-entropies to the adapter set's gradients (it neither
  // zeroes nor divides them). Dropout is on. `micro_batches` must live until it returns. All stages
  // of the replica must call, with the same micro-batches. Throws StatusError: kind peer when a
  // neighbour is lost, recipe when the schedule cannot deal out that number of micro-batches.
  // `layers_done` is told, inside the last backward passes, from which layer on the gradients of
  // this stage are final; what is below the last call is final when this returns.
  StepResult TrainStep(const std::vector<models::MicroBatch>& micro_batches,
                       const LayerWatch::Listener& layers_done = nullptr);
  // Forward only: losses of the micro-batches. Dropout is off, no autograd state.
  StepResult Evaluate(const std::vector<models::MicroBatch>& micro_batches);
  // Scoring: both passes of TrainStep with dropout off. `prepare` gives each micro-batch's context
  // its gates, whose gradients are what remains; they must live until it returns.
  using PrepareContext = std::function<void(models::SiteContext& context)>;
  StepResult Differentiate(const std::vector<models::MicroBatch>& micro_batches,
                           const PrepareContext& prepare);

  // What has become of the micro-batches of training steps; null without a pass_recorder.
  const MicroBatchGraphs* graphs() const { return graphs_.get(); }

 private:
  class Run;
  const Plan& plan_;
  Stage& stage_;
  const ExecutorOptions options_;
  // Shared with the site hooks that move transfers on between layers.
  std::shared_ptr<StageTransfers> transfers_;
  LayerWatch layer_watch_;
  std::unique_ptr<MicroBatchGraphs> graphs_;  // null: none are recorded
};

}  // namespace graft::sharding
