#include "sharding/plan_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::sharding {
namespace {

// FLOP of one micro-batch on one part.
struct PartWork {
  double forward = 0;
  double backward = 0;
};

PartWork WorkOf(const models::ModelConfig& config, const Plan& plan, const StageChunk& part,
                const PlanWork& work) {
  const double tokens = static_cast<double>(work.shape.micro_batch_tokens);
  // Weights of the backbone that are trained add a product with their input in the backward pass.
  const double adapters =
      work.shape.trains_backbone
          ? 0.0
          : static_cast<double>(part.trainable_parameters -
                                (part.embed ? work.trained_encoder_parameters : 0));
  const double weight_gradients = work.shape.trains_backbone ? 2.0 : 0.0;
  PartWork flop;
  flop.forward = 2.0 * adapters;
  if (part.backward) flop.backward = 4.0 * adapters;
  for (int layer = part.first_layer; layer < part.end_layer(); ++layer) {
    const double forward =
        LayerForwardFlop(config, layer, work.sequence_length, work.shape.head_share);
    flop.forward += forward;
    if (!part.backward || layer < plan.first_trained_layer) continue;
    flop.backward += LayerBackwardFlop(config, layer, work.sequence_length, work.shape.head_share);
    flop.backward += weight_gradients * static_cast<double>(LayerMatmulParameters(config, layer));
    if (work.shape.recompute) flop.backward += forward;
  }
  // The loss makes the hidden state's gradient in the forward pass.
  if (part.head && work.shape.language_head) {
    flop.forward += ((part.backward ? 4.0 : 2.0) + weight_gradients) *
                    static_cast<double>(HeadMatmulParameters(config)) * work.shape.head_share;
  }
  flop.forward *= tokens;
  flop.backward *= tokens;
  if (part.embed) {
    flop.forward += work.encoder_forward_flop;
    flop.backward += work.encoder_backward_flop;
  }
  return flop;
}

int64_t FrozenParameters(const models::ModelConfig& config, const Plan& plan, int stage) {
  int64_t count = 0;
  bool embed = false;
  for (const StageChunk& part : plan.parts) {
    if (part.stage != stage) continue;
    count += LayersParameters(config, part.first_layer, part.end_layer());
    if (part.embed) count += EmbeddingParameters(config);
    embed = embed || part.embed;
    if (part.head) {
      count += HeadParameters(config);
      if (embed && config.tie_word_embeddings) count -= HeadMatmulParameters(config);
    }
  }
  return count;
}

// What edits of a layer keep for each token: an encoder's layer has the input's rows, a decoder's
// the target's.
double KeptPerToken(const models::ModelConfig& config, const PlanWork& work, int layer) {
  const auto index = static_cast<size_t>(layer);
  if (index >= work.kept_per_row.size()) return 0.0;
  const auto kept = static_cast<double>(work.kept_per_row[index]);
  if (!config.has_encoder()) return kept;
  return kept *
         (config.is_decoder_layer(layer) ? work.shape.head_share : 1 - work.shape.head_share);
}

RankPart PartOfRank(const models::ModelConfig& config, const Plan& plan, const PlanWork& work,
                    int stage, int in_flight) {
  RankPart part;
  part.chunks = plan.chunks;
  part.in_flight = in_flight;
  part.boundaries = plan.stages > 1;
  for (const StageChunk& chunk : plan.parts) {
    if (chunk.stage != stage) continue;
    part.layers += chunk.num_layers;
    for (int layer = chunk.first_layer; layer < chunk.end_layer(); ++layer) {
      const int trained = layer >= plan.first_trained_layer ? 1 : 0;
      part.trained_layers += trained;
      part.kept_per_token += trained * KeptPerToken(config, work, layer);
      if (!config.is_decoder_layer(layer)) continue;
      ++part.decoder_layers;
      part.trained_decoder_layers += trained;
    }
    part.embed = part.embed || chunk.embed;
    part.head = part.head || chunk.head;
    part.adapter_parameters += chunk.trainable_parameters;
  }
  return part;
}

// Every use of a layer gathers it; a pass that turns around in its part finds two layers whole.
double ReceivedWeightBytes(const models::ModelConfig& config, const Plan& plan,
                           const PlanWork& work, int stage) {
  double bytes = 0;
  for (const StageChunk& part : plan.parts) {
    if (part.stage != stage) continue;
    for (int layer = part.first_layer; layer < part.end_layer(); ++layer) {
      const bool backward = part.backward && layer >= plan.first_trained_layer;
      bytes += (backward ? 2 : 1) * LayerMatrixBytes(config, work.shape, layer);
    }
  }
  return bytes * work.micro_batches * (work.data - 1) / work.data;
}

std::string LayersText(const Plan& plan, int stage) {
  std::string text;
  for (const StageChunk& part : plan.parts) {
    if (part.stage != stage) continue;
    absl::StrAppend(&text, text.empty() ? "" : " ", part.embed ? "embed+" : "", part.first_layer,
                    "-", part.end_layer() - 1, part.head ? "+head" : "");
  }
  return text;
}

std::string Bytes(double bytes) { return FormatBytes(static_cast<int64_t>(bytes)); }

}  // namespace

double PlanEstimate::LargestMemory() const {
  double largest = 0;
  for (const StageEstimate& stage : stages) largest = std::max(largest, stage.memory.total());
  return largest;
}

absl::StatusOr<PlanEstimate> EstimatePlan(const models::ModelConfig& config, const Plan& plan,
                                          const PlanWork& work) {
  SimulationInput input;
  input.stages = plan.stages;
  input.chunks = plan.chunks;
  PlanEstimate estimate;
  estimate.stages.resize(static_cast<size_t>(plan.stages));
  const double rate = work.flop_per_second > 0 ? work.flop_per_second : 1.0;
  for (const StageChunk& part : plan.parts) {
    const PartWork flop = WorkOf(config, plan, part, work);
    input.backward.push_back(part.backward);
    input.forward_seconds.push_back(flop.forward / rate);
    input.backward_seconds.push_back(flop.backward / rate);
    StageEstimate& stage = estimate.stages[static_cast<size_t>(part.stage)];
    stage.flop += work.micro_batches * (flop.forward + flop.backward);
    stage.trainable_parameters += part.trainable_parameters;
  }
  GRAFT_ASSIGN_OR_RETURN(input.schedule, BuildSchedule({work.schedule, plan.stages, plan.chunks,
                                                        work.micro_batches, input.backward}));
  GRAFT_ASSIGN_OR_RETURN(const Simulation simulation, Simulate(input));
  estimate.bubble_fraction = simulation.bubble_fraction;
  if (work.flop_per_second > 0) estimate.step_seconds = simulation.step_seconds;

  for (int index = 0; index < plan.stages; ++index) {
    StageEstimate& stage = estimate.stages[static_cast<size_t>(index)];
    stage.in_flight = simulation.in_flight[static_cast<size_t>(index)];
    stage.memory =
        MemoryOfRank(config, PartOfRank(config, plan, work, index, stage.in_flight), work.shape);
    if (work.shape.shards > 1) {
      stage.received_weight_bytes = ReceivedWeightBytes(config, plan, work, index);
    }
    if (!work.shape.trains_backbone)
      stage.frozen_parameters = FrozenParameters(config, plan, index);
    if (index == plan.parts.front().stage) {
      // A frozen one has no backward pass: its matrices are packed once, beside the stored ones.
      stage.frozen_parameters += work.encoder_parameters;
      const int64_t packed = work.shape.packed_twice ? work.encoder_packed_parameters : 0;
      stage.memory.frozen +=
          static_cast<double>((work.encoder_parameters + packed) * work.shape.element_bytes);
    }
    estimate.step_flop += work.data * stage.flop;
  }
  const double tokens = static_cast<double>(work.data) * work.micro_batches *
                        static_cast<double>(work.shape.micro_batch_tokens);
  estimate.flop_per_token = tokens > 0 ? estimate.step_flop / tokens : 0;
  return estimate;
}

std::string RenderPlan(const models::ModelConfig& config, const Plan& plan, const PlanWork& work,
                       const PlanEstimate& estimate) {
  std::string text = absl::StrFormat(
      "layout      %d data x %d pipeline, schedule %s%s, %d micro-batches of %d tokens per rank "
      "and "
      "step\n",
      work.data, plan.stages, ScheduleName(work.schedule),
      plan.chunks > 1 ? absl::StrCat(" with ", plan.chunks, " chunks") : "", work.micro_batches,
      work.shape.micro_batch_tokens);
  absl::StrAppendFormat(&text, "%-6s %-22s %12s %12s %10s %10s %10s %10s %10s %10s %10s %6s\n",
                        "stage", "layers", "frozen", "trainable", "program", "weights", "adapters",
                        "activ.", "buffers", "temporary", "total", "cost");
  int64_t trainable = 0;
  for (int index = 0; index < plan.stages; ++index) {
    const StageEstimate& stage = estimate.stages[static_cast<size_t>(index)];
    const RankMemory& memory = stage.memory;
    trainable += stage.trainable_parameters;
    absl::StrAppendFormat(&text, "%-6d %-22s %12d %12d %10s %10s %10s %10s %10s %10s %10s %6.2f\n",
                          index, LayersText(plan, index), stage.frozen_parameters,
                          stage.trainable_parameters, Bytes(memory.base), Bytes(memory.frozen),
                          Bytes(memory.adapters), Bytes(memory.activations),
                          Bytes(memory.boundaries), Bytes(memory.temporary()),
                          Bytes(memory.total()), plan.StageCost(index));
  }
  const int64_t total = LayersParameters(config, 0, config.num_layers) +
                        EmbeddingParameters(config) + HeadParameters(config) -
                        (config.tie_word_embeddings ? HeadMatmulParameters(config) : 0) +
                        work.encoder_parameters;
  absl::StrAppendFormat(&text, "parameters  %d trainable of %d%s (%.4f %%)\n", trainable, total,
                        work.shape.trains_backbone ? "" : " frozen",
                        100.0 * static_cast<double>(trainable) / static_cast<double>(total));
  if (work.shape.quantize != models::Quantization::kNone) {
    absl::StrAppendFormat(&text, "quantize    %s: %.3f bytes a weight of the layers' matrices\n",
                          models::QuantizationName(work.shape.quantize),
                          static_cast<double>(LayerQuantizedBytes(config, work.shape.quantize)) /
                              static_cast<double>(LayerMatmulParameters(config)));
  }
  if (work.shape.shards > 1) {
    const StageEstimate& first = estimate.stages[0];
    absl::StrAppendFormat(&text,
                          "shards      each rank keeps 1/%d of its layers' matrices; the two that "
                          "are whole take %s, stage 0 receives at most %s a step\n",
                          work.data, Bytes(first.memory.gathered),
                          Bytes(first.received_weight_bytes));
  }
  if (work.shape.recordings) {
    absl::StrAppendFormat(&text, "recordings  of micro-batches take %s more, in the total\n",
                          Bytes(estimate.stages[0].memory.recordings));
  }
  absl::StrAppendFormat(&text, "balance     %.1f %%, worst stage %d\n", 100.0 * plan.Efficiency(),
                        plan.WorstStage());
  absl::StrAppendFormat(&text, "bubble      %.1f %%\n", 100.0 * estimate.bubble_fraction);
  absl::StrAppendFormat(&text, "work        %.4g GFLOP per token, %.4g GFLOP per step\n",
                        estimate.flop_per_token / 1e9, estimate.step_flop / 1e9);
  if (work.flop_per_second > 0) {
    const double tokens = static_cast<double>(work.data) * work.micro_batches *
                          static_cast<double>(work.shape.micro_batch_tokens);
    absl::StrAppendFormat(
        &text, "step        %.3g s predicted at %.4g GFLOP/s per rank: %.4g tokens/s\n",
        estimate.step_seconds, work.flop_per_second / 1e9, tokens / estimate.step_seconds);
  }
  absl::StrAppend(&text, "plan        ", plan.Hash().substr(0, 16), "\n");
  return text;
}

}  // namespace graft::sharding
