#include "trainer/tenants/device_pass.h"

#include <numeric>
#include <utility>

#include <ATen/ATen.h>

#include "base/logging.h"
#include "base/status.h"
#include "trainer/token_choice.h"

namespace graft::trainer {
namespace {

constexpr size_t kMaxRecorded = 64;  // each has some MB on the GPU

}  // namespace

DevicePass::DevicePass(models::Backbone& backbone, models::KvCache& cache, int64_t width,
                       bool graphs)
    : backbone_(backbone), cache_(cache), graphs_(graphs && backbone.device().is_cuda()) {
  host_inputs_ = at::zeros({3, width}, torch::kInt64);
  if (backbone.device().is_cuda()) host_inputs_ = host_inputs_.pin_memory();
  inputs_ = host_inputs_.to(backbone.device(), torch::kInt64, /*non_blocking=*/false,
                            /*copy=*/true);
}

DevicePass::Result DevicePass::Run(const models::MicroBatch& batch, const models::SiteTable* guests,
                                   const std::vector<int64_t>* layout,
                                   models::SequenceStates& states) {
  CopyInputs(batch);
  const auto forward = [&] { return Forward(batch, guests, states); };
  Outputs outputs;
  GraphUse use = GraphUse::kNone;
  if (graphs_ && layout != nullptr) {
    if (recorded_.size() > kMaxRecorded) recorded_.clear();
    Recorded& recorded = recorded_[*layout];
    if (recorded.graph != nullptr && !recorded.graph->IsValid()) {
      recorded_.clear();
    } else {
      use = RunRecorded(forward, &recorded, &outputs);
    }
  }
  if (use == GraphUse::kNone) outputs = forward();
  return {outputs.logits, HostTokens(outputs.tokens), use};
}

GraphUse DevicePass::RunRecorded(const std::function<Outputs()>& forward, Recorded* recorded,
                                 Outputs* outputs) {
  if (recorded->graph != nullptr) {
    recorded->graph->Launch();
    *outputs = recorded->outputs;
    return GraphUse::kReplayed;
  }
  if (!std::exchange(recorded->seen, true)) return GraphUse::kNone;
  const absl::Status status = Record(forward, recorded);
  if (status.ok()) {
    *outputs = recorded->outputs;
    return GraphUse::kRecorded;
  }
  LOG(WARNING) << "decoding without CUDA graphs: " << status.message();
  graphs_ = false;
  recorded->graph.reset();
  return GraphUse::kNone;  // the step runs again, over what this one may have written
}

absl::Status DevicePass::Record(const std::function<Outputs()>& forward, Recorded* recorded) {
  torch::Tensor launched;  // the tokens of the run in front of the recorded one
  GRAFT_ASSIGN_OR_RETURN(recorded->graph, models::GpuGraph::Record(backbone_.device(), [&] {
                           recorded->outputs = forward();
                           if (!launched.defined()) launched = recorded->outputs.tokens;
                         }));
  if (!recorded->graph->IsValid()) return BugError("LibTorch gave memory back while it recorded");
  recorded->graph->Launch();
  if (HostTokens(recorded->outputs.tokens) == HostTokens(launched)) return absl::OkStatus();
  return BugError("a replay gave other tokens than the launches that were recorded");
}

void DevicePass::CopyInputs(const models::MicroBatch& batch) {
  auto* const tokens = host_inputs_.data_ptr<int64_t>();
  auto* const positions = tokens + host_inputs_.size(1);
  auto* const places = positions + host_inputs_.size(1);
  for (size_t row = 0; row < batch.segments.size(); ++row) {
    tokens[row] = batch.tokens[row];
    positions[row] = batch.positions[row];
    places[row] = cache_.Place(batch.segments[row].sample_id);
  }
  inputs_.copy_(host_inputs_, /*non_blocking=*/true);
}

DevicePass::Outputs DevicePass::Forward(const models::MicroBatch& batch,
                                        const models::SiteTable* guests,
                                        models::SequenceStates& states) {
  const auto input = [&](int64_t row) { return inputs_[row].narrow(0, 0, batch.num_rows()); };
  const models::DecodingInputs decoding{input(0), input(1), input(2)};
  models::SiteContext context;
  context.batch = &batch;
  context.sequences = &states;
  context.guests = guests;
  context.decoding = &decoding;
  const torch::Tensor h = backbone_.Layers(backbone_.Embed(context), context, &cache_);
  std::vector<int64_t> rows(static_cast<size_t>(batch.num_rows()));
  std::iota(rows.begin(), rows.end(), 0);
  const torch::Tensor logits = backbone_.Logits(h, rows);
  return {logits, GreedyTokens(logits)};
}

}  // namespace graft::trainer
