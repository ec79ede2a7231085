#include "sharding/executor.h"

#include <ATen/ATen.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/autograd/autograd.h>

#include <chrono>
#include <map>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "comm/monotonic.h"
#include "models/layers/head_loss.h"
#include "models/layers/task_loss.h"
#include "sharding/frozen_shards.h"

namespace graft::sharding {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Not for the whole device: reductions that were started may still wait for other ranks.
void WaitForStream(torch::Device device) {
  const auto* guard = c10::impl::getDeviceGuardImpl(device.type());
  guard->synchronizeStream(guard->getStream(device));
}

// MPI moves transfers on only while it is called: tests the open ones before each layer, in the
// forward pass and, through the hidden state's gradient, in the backward pass.
class ProgressHook : public models::SiteHook {
 public:
  explicit ProgressHook(std::weak_ptr<StageTransfers> transfers)
      : transfers_(std::move(transfers)), thread_(std::this_thread::get_id()) {}

  torch::Tensor EditOutput(const models::SiteInput& /*x*/, torch::Tensor y,
                           models::SiteContext& /*context*/) override {
    // CUDA gradients arrive on a thread of LibTorch's own, which may not call MPI; recomputed
    // layers run there too.
    if (std::this_thread::get_id() == thread_) Progress(transfers_);
    if (y.requires_grad() && !y.is_leaf() && y.is_cpu()) {
      y.register_hook([transfers = transfers_](const torch::Tensor&) { Progress(transfers); });
    }
    return y;
  }

 private:
  static void Progress(const std::weak_ptr<StageTransfers>& weak) {
    if (const auto transfers = weak.lock()) transfers->Progress();
  }
  const std::weak_ptr<StageTransfers> transfers_;
  const std::thread::id thread_;
};

}  // namespace

// One step on this rank.
class Executor::Run {
 public:
  // `backward`: with gradients; `training`: with dropout; the last two may be empty and null.
  struct Mode {
    bool backward = false;
    bool training = false;
    PrepareContext prepare;
    const LayerWatch::Listener* layers_done = nullptr;
  };

  Run(Executor& executor, const std::vector<models::MicroBatch>& micro_batches, Mode mode)
      : plan_(executor.plan_),
        stage_(executor.stage_),
        options_(executor.options_),
        transfers_(*executor.transfers_),
        layer_watch_(executor.layer_watch_),
        graphs_(mode.training ? executor.graphs_.get() : nullptr),
        micro_batches_(micro_batches),
        mode_(std::move(mode)) {
    ScheduleShape shape{options_.schedule, plan_.stages, plan_.chunks,
                        static_cast<int>(micro_batches.size()), std::vector<bool>()};
    for (const StageChunk& part : plan_.parts)
      shape.backward.push_back(mode_.backward && part.backward);
    ops_ = ValueOrThrow(BuildSchedule(shape))[static_cast<size_t>(stage_.index())];
    for (size_t i = 0; i < ops_.size(); ++i) {
      if (TakesInput(ops_[i])) receives_.push_back(i);
      if (ops_[i].pass == Pass::kBackward) last_backward_[ops_[i].chunk] = ops_[i].micro_batch;
    }
  }

  StepResult Go() {
    if (plan_.Part(stage_.index(), plan_.chunks - 1).head) {
      losses_.resize(micro_batches_.size());
      result_.outputs.resize(micro_batches_.size());
    }
    const double blocked_before = transfers_.blocked_seconds(), gathering_before = Gathering();
    transfers_.BeginStep(micro_batches_.empty() ? 0 : micro_batches_[0].step);
    begin_ = Clock::now();
    result_.begin_ns = comm::MonotonicNanos();
    for (size_t i = 0; i < ops_.size(); ++i) {
      PostReceives(i);
      if (ops_[i].pass == Pass::kForward) {
        Forward(ops_[i]);
      } else {
        Backward(ops_[i]);
      }
      transfers_.Progress();
    }
    transfers_.FinishStep();
    ReadLosses();
    if (!options_.device.is_cpu()) WaitForStream(options_.device);
    // Waiting for the replicas happens inside operations.
    const double gathering = Gathering() - gathering_before;
    if (options_.shards != nullptr) options_.shards->Settle();
    result_.step_seconds = SecondsSince(begin_);
    result_.compute_seconds -= gathering;
    result_.blocked_seconds =
        transfers_.blocked_seconds() - blocked_before + Gathering() - gathering_before;
    // What an operation costs a GPU is not seen from here: it only takes orders in between.
    if (!options_.device.is_cpu())
      result_.compute_seconds = result_.step_seconds - result_.blocked_seconds;
    result_.loss_sum = std::accumulate(result_.losses.begin(), result_.losses.end(), 0.0);
    return std::move(result_);
  }

 private:
  // What a micro-batch leaves between its forward and its backward pass through a part.
  struct Pending {
    torch::Tensor input;   // undefined where no gradient goes down
    torch::Tensor output;  // hidden state, or the loss behind the last part
  };

  // Seconds that this rank has waited for the weights of its replicas so far.
  double Gathering() const {
    return options_.shards != nullptr ? options_.shards->blocked_seconds() : 0.0;
  }
  int PartOf(const Op& op) const { return plan_.VirtualStage(stage_.index(), op.chunk); }
  const StageChunk& Facts(int part) const { return plan_.parts[static_cast<size_t>(part)]; }
  const models::MicroBatch& Batch(const Op& op) const {
    return micro_batches_[static_cast<size_t>(op.micro_batch)];
  }
  bool TakesInput(const Op& op) const {
    return op.pass == Pass::kForward ? !Facts(PartOf(op)).embed : !Facts(PartOf(op)).head;
  }
  FlowKey InputOf(const Op& op) const { return {op.pass, PartOf(op), op.micro_batch}; }

  // Posts the receives of everything up to operation `now` and of the next one behind it.
  void PostReceives(size_t now) {
    while (next_receive_ < receives_.size() &&
           (next_receive_ == 0 || receives_[next_receive_ - 1] <= now)) {
      const Op& op = ops_[receives_[next_receive_++]];
      const int64_t width = stage_.backbone(op.chunk).config().hidden_size;
      transfers_.Post(InputOf(op),
                      at::empty({Batch(op).boundary_rows(), width},
                                torch::TensorOptions(options_.dtype).device(options_.device)));
    }
  }

  void Forward(const Op& op) {
    const int part = PartOf(op);
    const bool backward = mode_.backward && Facts(part).backward;
    if (backward && graphs_ != nullptr && RunRecorded(op)) return;
    torch::Tensor input;
    if (!Facts(part).embed) input = transfers_.Take(InputOf(op));
    const Clock::time_point begin = Clock::now();
    Pending pending;
    {
      at::AutoGradMode mode(backward);
      if (backward && Facts(part).input_gradient) {
        input.requires_grad_(true);
        pending.input = input;
      }
      models::Backbone& backbone = stage_.backbone(op.chunk);
      models::SiteContext context;
      context.batch = &Batch(op);
      context.training = mode_.training;
      if (mode_.prepare) mode_.prepare(context);
      torch::Tensor hidden = Facts(part).embed ? backbone.Embed(context) : input;
      hidden = backbone.Layers(hidden, context);
      pending.output =
          Facts(part).head ? LossSum(op, backbone, hidden, context) : hidden.contiguous();
    }
    if (Facts(part).head) {
      losses_[static_cast<size_t>(op.micro_batch)] = pending.output.detach();
    }
    Record(op, begin);
    if (!Facts(part).head) {
      transfers_.Give({Pass::kForward, part + 1, op.micro_batch}, pending.output.detach());
    }
    if (backward) pending_[{op.chunk, op.micro_batch}] = std::move(pending);
  }

  // Both passes in one; false: they are to be launched.
  bool RunRecorded(const Op& op) {
    const Clock::time_point begin = Clock::now();
    const torch::Tensor loss = graphs_->Run(Batch(op));
    if (!loss.defined()) return false;
    losses_[static_cast<size_t>(op.micro_batch)] = loss;
    Record(op, begin);
    return true;
  }

  torch::Tensor LossSum(const Op& op, models::Backbone& backbone, const torch::Tensor& hidden,
                        models::SiteContext& context) {
    if (!context.batch->has_task_labels()) {
      if (mode_.backward) return backbone.LossSum(hidden, context);
      const models::TargetResults targets = backbone.EvaluateTargets(hidden, context);
      result_.outputs[static_cast<size_t>(op.micro_batch)] = targets.right;
      return targets.losses.sum(at::kDouble);
    }
    const torch::Tensor outputs = backbone.TaskOutputs(hidden, context);
    if (!mode_.backward) result_.outputs[static_cast<size_t>(op.micro_batch)] = outputs.detach();
    return models::TaskLossSum(outputs, *context.batch);
  }

  // Once a step: each look at a number that lies on a GPU waits for it.
  void ReadLosses() {
    if (losses_.empty()) return;
    const torch::Tensor all = at::stack(losses_).to(at::kCPU, at::kDouble);
    result_.losses.assign(all.const_data_ptr<double>(), all.const_data_ptr<double>() + all.numel());
    for (torch::Tensor& outputs : result_.outputs) {
      if (outputs.defined()) outputs = outputs.to(at::kCPU);
    }
  }

  void Backward(const Op& op) {
    const int part = PartOf(op);
    torch::Tensor gradient;
    if (!Facts(part).head) gradient = transfers_.Take(InputOf(op));
    const Clock::time_point begin = Clock::now();
    if (graphs_ != nullptr && !pending_.contains({op.chunk, op.micro_batch}))
      return Record(op, begin);  // its forward operation has done it
    Pending pending = std::move(pending_.extract({op.chunk, op.micro_batch}).mapped());
    GRAFT_CHECK(pending.output.requires_grad(),
                absl::StrCat("part ", part, " has a backward pass, but nothing requires grad"));
    if (!gradient.defined()) gradient = at::ones_like(pending.output);
    const bool is_last = last_backward_.at(op.chunk) == op.micro_batch;
    {
      const LayerWatch::Scope listen(layer_watch_, is_last ? mode_.layers_done : nullptr);
      torch::autograd::backward({pending.output}, {gradient});
    }
    torch::Tensor input_gradient;
    if (pending.input.defined()) {
      input_gradient = pending.input.grad().defined() ? pending.input.grad().contiguous()
                                                      : at::zeros_like(pending.input);
    }
    pending = Pending();
    Record(op, begin);
    if (input_gradient.defined()) {
      transfers_.Give({Pass::kBackward, part - 1, op.micro_batch}, std::move(input_gradient));
    }
  }

  void Record(const Op& op, Clock::time_point begin) {
    const double begin_seconds = std::chrono::duration<double>(begin - begin_).count();
    const double end_seconds = SecondsSince(begin_);
    result_.timeline.push_back({op, begin_seconds, end_seconds});
    result_.compute_seconds += end_seconds - begin_seconds;
  }

  const Plan& plan_;
  Stage& stage_;
  const ExecutorOptions& options_;
  StageTransfers& transfers_;
  LayerWatch& layer_watch_;
  MicroBatchGraphs* const graphs_;  // of a training step; null: none
  const std::vector<models::MicroBatch>& micro_batches_;
  const Mode mode_;
  std::vector<Op> ops_;
  std::vector<size_t> receives_;  // operations that take a tensor in
  size_t next_receive_ = 0;
  std::map<int, int> last_backward_;                // micro-batch, by chunk
  std::map<std::pair<int, int>, Pending> pending_;  // by (chunk, micro-batch)
  std::vector<torch::Tensor> losses_;               // of each micro-batch, where they were made
  Clock::time_point begin_;
  StepResult result_;
};

Executor::Executor(const Plan& plan, Stage& stage, comm::Communicator& pipeline,
                   const ExecutorOptions& options)
    : plan_(plan),
      stage_(stage),
      options_(options),
      transfers_(std::make_shared<StageTransfers>(plan, stage.index(), pipeline)) {
  if (options.pass_recorder != nullptr) {
    GRAFT_CHECK(plan.parts.size() == 1 && options.schedule == ScheduleKind::k1F1B,
                "passes are recorded where there is one part, in 1F1B's order");
    graphs_ = std::make_unique<MicroBatchGraphs>(stage, options.pass_recorder);
  }
  const auto progress = std::make_shared<ProgressHook>(transfers_);
  for (int chunk = 0; chunk < plan.chunks; ++chunk) {
    const StageChunk& part = plan.Part(stage.index(), chunk);
    models::SiteTable& sites = stage.backbone(chunk).sites();
    for (int layer = part.first_layer; layer < part.end_layer(); ++layer) {
      // The input of the lowest trained layer has no gradient.
      if (part.backward && layer > plan.first_trained_layer) layer_watch_.Watch(sites, layer);
      if (plan.stages > 1) sites.Add({layer, models::Role::kLayerIn}, progress);
    }
  }
}

Executor::~Executor() = default;

void Executor::Connect() { transfers_->Connect(options_.device); }

StepResult Executor::TrainStep(const std::vector<models::MicroBatch>& micro_batches,
                               const LayerWatch::Listener& layers_done) {
  return Run(*this, micro_batches,
             {.backward = true, .training = true, .prepare = {}, .layers_done = &layers_done})
      .Go();
}

StepResult Executor::Evaluate(const std::vector<models::MicroBatch>& micro_batches) {
  return Run(*this, micro_batches, {}).Go();
}

StepResult Executor::Differentiate(const std::vector<models::MicroBatch>& micro_batches,
                                   const PrepareContext& prepare) {
  return Run(*this, micro_batches, {.backward = true, .prepare = prepare}).Go();
}

}  // namespace graft::sharding
