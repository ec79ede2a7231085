#include "sharding/step_graph.h"

#include <limits>
#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/hash.h"
#include "base/logging.h"
#include "base/status.h"
#include "models/device.h"
#include "models/gpu_graph.h"
#include "models/layers/task_loss.h"
#include "models/site.h"

namespace graft::sharding {
namespace {

constexpr int kMaxTimesLost = 8;  // memory is short then, and recording costs more than it saves

class GpuPass : public RecordedPass {
 public:
  explicit GpuPass(std::unique_ptr<models::GpuGraph> graph) : graph_(std::move(graph)) {}
  bool IsValid() const override { return graph_->IsValid(); }
  void Launch() const override { graph_->Launch(); }

 private:
  const std::unique_ptr<models::GpuGraph> graph_;
};

// A NaN equals itself here: a diverged run is none the worse for being replayed.
bool SameBits(const torch::Tensor& a, const torch::Tensor& b) {
  const torch::Dtype bits = a.element_size() == 8 ? torch::kInt64 : torch::kInt32;
  return at::equal(a.view(bits), b.view(bits));
}

// The layout of a batch without the numbers that differ between batches of one layout, so that a
// pass which reads those from the host fails instead of recording them.
models::MicroBatch WithoutNumbers(models::MicroBatch batch) {
  batch.tokens.clear();
  batch.target_ids.clear();
  batch.labels.assign(batch.labels.size(), 0);
  batch.values.assign(batch.values.size(), std::numeric_limits<float>::quiet_NaN());
  batch.prompts = nullptr;
  return batch;
}

}  // namespace

PassRecorder GpuPassRecorder(torch::Device gpu) {
  return [gpu](const std::function<void()>& body) -> absl::StatusOr<std::unique_ptr<RecordedPass>> {
    GRAFT_ASSIGN_OR_RETURN(std::unique_ptr<models::GpuGraph> graph,
                           models::GpuGraph::Record(gpu, body));
    return std::make_unique<GpuPass>(std::move(graph));
  };
}

// What the passes of one layout read and write at fixed addresses.
struct MicroBatchGraphs::Recording {
  Recording(const models::MicroBatch& like, torch::Device device)
      : batch(WithoutNumbers(like)),
        loss(at::zeros({}, torch::TensorOptions(torch::kFloat64).device(device))) {
    const auto room = [device](size_t count, torch::Dtype type) {
      return at::zeros({static_cast<int64_t>(count)}, torch::TensorOptions(type).device(device));
    };
    inputs.tokens = room(like.tokens.size(), torch::kInt64);
    inputs.target_ids = room(like.target_ids.size(), torch::kInt64);
    inputs.labels = room(like.labels.size(), torch::kInt64);
    inputs.values = room(like.values.size(), torch::kFloat32);
  }

  void Fill(const models::MicroBatch& from) {
    const auto fill = [](const auto& numbers, const torch::Tensor& there) {
      if (!numbers.empty()) models::CopyToDevice(torch::tensor(numbers, there.dtype()), there);
    };
    fill(from.tokens, inputs.tokens);
    fill(from.target_ids, inputs.target_ids);
    fill(from.labels, inputs.labels);
    fill(from.values, inputs.values);
  }

  void RunBothPasses(models::Backbone& backbone) {
    const models::KeptCopies::Run run(copies);
    const at::AutoGradMode with_graph(true);
    models::SiteContext context;
    context.batch = &batch;
    context.training = true;
    context.inputs = &inputs;
    const torch::Tensor hidden = backbone.Layers(backbone.Embed(context), context);
    const torch::Tensor sum =
        batch.has_task_labels()
            ? models::TaskLossSum(backbone.TaskOutputs(hidden, context), batch, &inputs)
            : backbone.LossSum(hidden, context);
    GRAFT_CHECK(sum.requires_grad(), "a pass without gradients is recorded");
    torch::autograd::backward({sum}, {at::ones_like(sum)});
    loss.copy_(sum.detach());
  }

  const models::MicroBatch batch;
  models::BatchInputs inputs;
  models::KeptCopies copies;
  const torch::Tensor loss;
  std::unique_ptr<RecordedPass> pass;
};

MicroBatchGraphs::MicroBatchGraphs(Stage& stage, PassRecorder recorder)
    : stage_(stage), recorder_(std::move(recorder)) {
  GRAFT_CHECK(
      stage.num_chunks() == 1 && stage.backbone(0).range().embed && stage.backbone(0).range().head,
      "micro-batches are recorded where the whole model is");
}

MicroBatchGraphs::~MicroBatchGraphs() = default;

torch::Tensor MicroBatchGraphs::Run(const models::MicroBatch& batch) {
  ++micro_batches_;
  if (recorder_ == nullptr || batch.num_rows() == 0 || batch.source != nullptr) return {};
  const Layout layout = LayoutOf(batch);
  auto found = recordings_.find(layout);
  if (found != recordings_.end() && !found->second->pass->IsValid()) {
    Lose();
    if (recorder_ == nullptr) return {};
    found = recordings_.end();
  }
  if (found != recordings_.end()) return Replay(batch, *found->second);
  if (!HasBeenSeen(layout) || recordings_.size() == kMaxRecordings) return {};
  return Record(layout, batch);
}

MicroBatchGraphs::Layout MicroBatchGraphs::LayoutOf(const models::MicroBatch& batch) {
  const auto count = [](const auto& list) { return static_cast<int64_t>(list.size()); };
  Layout layout = {count(batch.segments), count(batch.target_rows), count(batch.labels),
                   count(batch.values)};
  for (const models::Segment& segment : batch.segments) {
    layout.insert(layout.end(),
                  {segment.begin, segment.length, segment.prompt_length, segment.virtual_rows});
  }
  layout.insert(layout.end(), batch.positions.begin(), batch.positions.end());
  layout.insert(layout.end(), batch.target_rows.begin(), batch.target_rows.end());
  return layout;
}

bool MicroBatchGraphs::HasBeenSeen(const Layout& layout) {
  const uint64_t hash = Hash64(layout.data(), layout.size() * sizeof(layout[0]));
  if (seen_.contains(hash)) return true;
  if (seen_.size() == kMaxSeen) seen_.clear();
  seen_.insert(hash);
  return false;
}

torch::Tensor MicroBatchGraphs::Replay(const models::MicroBatch& batch, Recording& recording) {
  recording.Fill(batch);
  recording.pass->Launch();
  ++replays_;
  return recording.loss.clone();
}

torch::Tensor MicroBatchGraphs::Record(const Layout& layout, const models::MicroBatch& batch) {
  models::Backbone& backbone = stage_.backbone(0);
  const torch::Tensor& gradients = stage_.adapters().gradients();
  const torch::Tensor before = gradients.clone(), launched = at::empty_like(gradients);
  auto recording = std::make_unique<Recording>(batch, backbone.device());
  recording->Fill(batch);
  // Allocated here: for an allocation LibTorch may give back the memory of what was recorded.
  const torch::Tensor loss = at::empty_like(recording->loss);
  auto pass = recorder_([&backbone, r = recording.get()] { r->RunBothPasses(backbone); });
  if (!pass.ok()) {
    models::WaitForDevice(backbone.device());  // a run that broke off may still add gradients
    gradients.copy_(before);
    GiveUp(pass.status().message());
    return {};
  }
  // The run in front of the recorded one counts, or its replay: both give the same.
  ++records_;
  loss.copy_(recording->loss);
  if (!(*pass)->IsValid()) {
    Lose();
    return loss;
  }
  launched.copy_(gradients);
  gradients.copy_(before);
  (*pass)->Launch();
  if (!SameBits(recording->loss, loss) || !SameBits(gradients, launched)) {
    gradients.copy_(launched);
    GiveUp("a replay gave other numbers than the launches that were recorded");
    return loss;
  }
  recording->pass = *std::move(pass);
  if (recordings_.empty())
    LOG(INFO) << "CUDA graphs: recorded a micro-batch of " << batch.num_rows() << " rows";
  recordings_.emplace(layout, std::move(recording));
  return loss;
}

std::string MicroBatchGraphs::Summary() const {
  if (replays_ > 0) {
    return absl::StrCat("CUDA graphs: ", replays_, " of ", micro_batches_,
                        " micro-batches were replayed, ", records_, " recorded");
  }
  absl::string_view reason = "no layout that was recorded came once more";
  if (recorder_ == nullptr) {
    reason = "a warning above says why";
  } else if (records_ == 0) {
    reason = "no layout (lengths, positions, supervised rows) came a second time";
  } else if (times_lost_ > 0) {
    reason = "LibTorch gave the memory of what was recorded back";
  }
  return absl::StrCat("CUDA graphs: none of ", micro_batches_,
                      " micro-batches was replayed: ", reason);
}

void MicroBatchGraphs::Lose() {
  if (++times_lost_ == kMaxTimesLost) {
    GiveUp("LibTorch gave their memory back again and again");
  } else {
    Forget();
  }
}

void MicroBatchGraphs::GiveUp(absl::string_view reason) {
  // LibTorch's messages go on with the stack.
  const absl::string_view line = reason.substr(0, reason.find('\n'));
  LOG(WARNING) << "training without CUDA graphs: " << line
               << (absl::StrContains(line, "out of memory")
                       ? "; what is recorded needs a micro-batch's memory a second time, which "
                         "`graft plan` has in its line \"recordings\""
                       : "");
  recorder_ = nullptr;
  Forget();
}

void MicroBatchGraphs::Forget() {
  models::WaitForDevice(stage_.backbone(0).device());  // for replays that run
  recordings_.clear();
}

}  // namespace graft::sharding
