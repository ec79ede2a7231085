// loo and keep_one (methods.md 16.2): what lies below the ablated layer runs once and is shared,
// the variants of a layer and the clean copy run as groups of rows of one batch, which the gates of
// the rows tell apart, and the head runs on supervised rows only.
//
// Legend: N rows of the micro-batch (boundary_rows: with an encoder its rows stand in front of the
// decoder's), J modules of the layer, group 0 = the clean copy, group g = the variant of module
// g - 1; a state "in front of layer l" is what layer l takes, (N, D). Of several groups all of the
// encoder's rows stand in front of all of the decoder's.
#include <algorithm>
#include <functional>
#include <memory>

#include <ATen/ATen.h>

#include "models/layers/head_loss.h"
#include "models/layers/task_loss.h"
#include "trainer/scoring/scoring_runner.h"

namespace graft::trainer {
namespace {

using models::MicroBatch;
using models::SiteGates;

// `groups` copies of the samples one after the other; only what layers read of a batch.
MicroBatch Repeated(const MicroBatch& batch, int64_t groups) {
  MicroBatch repeated;
  if (batch.source != nullptr)
    repeated.source = std::make_shared<const MicroBatch>(Repeated(*batch.source, groups));
  const int64_t rows = batch.num_rows();
  for (int64_t group = 0; group < groups; ++group) {
    for (models::Segment segment : batch.segments) {
      segment.begin += group * rows;
      repeated.segments.push_back(segment);
    }
    repeated.positions.insert(repeated.positions.end(), batch.positions.begin(),
                              batch.positions.end());
  }
  return repeated;
}

int64_t SourceRows(const MicroBatch& batch) {
  return batch.source == nullptr ? 0 : batch.source->num_rows();
}

torch::Tensor RepeatedState(const torch::Tensor& h, const MicroBatch& batch, int64_t groups) {
  const int64_t source = SourceRows(batch);
  if (source == 0) return h.repeat({groups, 1});
  return at::cat({h.narrow(0, 0, source).repeat({groups, 1}),
                  h.narrow(0, source, batch.num_rows()).repeat({groups, 1})});
}

torch::Tensor StateOfGroup(const torch::Tensor& h, const MicroBatch& batch, int64_t groups,
                           int64_t group) {
  const int64_t source = SourceRows(batch), rows = batch.num_rows();
  const torch::Tensor own = h.narrow(0, groups * source + group * rows, rows);
  return source == 0 ? own : at::cat({h.narrow(0, group * source, source), own});
}

// loo: all modules on, but in group g that of module g - 1; keep_one: the opposite. `rows_at`: the
// rows of one group at a module.
SiteGates VariantGates(const std::vector<models::SiteSpec>& modules,
                       const std::function<int64_t(models::SiteId)>& rows_at, bool is_loo,
                       torch::Device device) {
  SiteGates gates;
  gates.open = is_loo;
  const auto groups = static_cast<int64_t>(modules.size()) + 1;
  for (size_t m = 0; m < modules.size(); ++m) {
    const int64_t rows = rows_at(modules[m].id);
    torch::Tensor gate = at::full({groups * rows}, is_loo ? 1.0 : 0.0, at::kFloat);
    gate.narrow(0, (static_cast<int64_t>(m) + 1) * rows, rows).fill_(is_loo ? 0.0 : 1.0);
    gates.rows[modules[m].id] = gate.to(device);
  }
  return gates;
}

void Append(const std::vector<double>& values, std::vector<double>* all) {
  all->insert(all->end(), values.begin(), values.end());
}

}  // namespace

void ScoringRunner::Ablate(const WorkItem& item, const MicroBatch& batch, Columns* columns) {
  at::NoGradGuard no_grad;
  const bool open = item.kind == "loo";
  torch::Tensor state;
  if (backbone_.range().embed) {
    models::SiteContext context;
    context.batch = &batch;
    state = backbone_.Embed(context);
  }
  int reached = 0;
  size_t column = 0;
  for (int layer = item.first_layer; layer < item.first_layer + item.num_layers; ++layer) {
    const size_t modules = ModulesOf(task_.modules, layer, layer + 1).size();
    if (modules == 0) continue;
    state = Advance(batch, open, reached, layer, state);
    columns->resize(std::max(columns->size(), column + modules + 1));
    AblateLayer(item, layer, batch, &state, column, columns);
    reached = layer + 1;
    column += modules + 1;
  }
}

// The groups of one layer, from that layer to the losses. *state: in front of `layer`, on the stage
// that has it; becomes the clean copy's in front of the next one.
void ScoringRunner::AblateLayer(const WorkItem& item, int layer, const MicroBatch& batch,
                                torch::Tensor* state, size_t column, Columns* columns) {
  const models::LayerRange& range = backbone_.range();
  if (range.end_layer() <= layer) return;
  const std::vector<models::SiteSpec> modules = ModulesOf(task_.modules, layer, layer + 1);
  const auto groups = static_cast<int64_t>(modules.size()) + 1;
  const MicroBatch variants = Repeated(batch, groups);
  const SiteGates gates = VariantGates(
      modules, [&](models::SiteId site) { return BatchAt(site, batch).num_rows(); },
      item.kind == "loo", model_.device());
  torch::Tensor h;
  if (range.first_layer <= layer) {
    h = RunLayers(variants, gates, layer, layer + 1, RepeatedState(*state, batch, groups));
  } else {
    h = ReceiveFromBelow(at::empty({variants.boundary_rows(), backbone_.config().hidden_size},
                                   at::TensorOptions(model_.dtype())))
            .to(model_.device());
  }
  const bool next_is_here = layer + 1 >= range.first_layer && layer + 1 < range.end_layer();
  if (next_is_here) *state = StateOfGroup(h, batch, groups, 0).clone();
  h = RunLayers(variants, gates, std::max(layer + 1, range.first_layer), range.end_layer(), h);
  if (!range.head) return SendUp(h);
  for (int64_t group = 0; group < groups; ++group) {
    Append(SampleLosses(batch, StateOfGroup(h, batch, groups, group)),
           &(*columns)[column + static_cast<size_t>(group)]);
  }
}

// Takes the state in front of layer `from` to layer `to`, all modules on or all off; undefined on
// stages that have not layer `to`.
torch::Tensor ScoringRunner::Advance(const MicroBatch& batch, bool open, int from, int to,
                                     torch::Tensor state) {
  const models::LayerRange& range = backbone_.range();
  if (range.end_layer() <= from || range.first_layer > to) return torch::Tensor();
  if (range.first_layer > from) {
    state = ReceiveFromBelow(at::empty({batch.boundary_rows(), backbone_.config().hidden_size},
                                       at::TensorOptions(model_.dtype())))
                .to(model_.device());
  }
  SiteGates gates;
  gates.open = open;
  state = RunLayers(batch, gates, std::max(from, range.first_layer),
                    std::min(to, range.end_layer()), state);
  if (range.end_layer() > to) return state;
  SendUp(state);
  return torch::Tensor();
}

torch::Tensor ScoringRunner::RunLayers(const MicroBatch& batch, const SiteGates& gates, int first,
                                       int end, const torch::Tensor& h) {
  if (first >= end) return h;
  layer_forwards_ += static_cast<int64_t>(batch.segments.size()) * (end - first);
  models::SiteContext context;
  context.batch = &batch;
  context.gates = &gates;
  context.first_layer = first;
  context.end_layer = end;
  return backbone_.Layers(h, context);
}

// l_n of one group: h (N, D) behind the last layer. Float64 sums in position order.
std::vector<double> ScoringRunner::SampleLosses(const MicroBatch& batch, const torch::Tensor& h) {
  models::SiteContext context;
  context.batch = &batch;
  if (batch.has_task_labels()) {
    const torch::Tensor losses =
        models::TaskLosses(backbone_.TaskOutputs(h, context), batch).to(at::kCPU, at::kDouble);
    return {losses.data_ptr<double>(), losses.data_ptr<double>() + losses.numel()};
  }
  const torch::Tensor losses = backbone_.EvaluateTargets(h, context).losses.to(at::kCPU);
  std::vector<double> sums(batch.segments.size(), 0.0);
  size_t sample = 0;
  for (size_t i = 0; i < batch.target_rows.size(); ++i) {
    const auto is_past = [&] {
      const models::Segment& segment = batch.segments[sample];
      return batch.target_rows[i] >= segment.begin + segment.length;
    };
    while (is_past()) ++sample;
    sums[sample] += static_cast<double>(losses.data_ptr<float>()[i]);
  }
  return sums;
}

}  // namespace graft::trainer
