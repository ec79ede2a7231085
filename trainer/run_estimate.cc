#include "trainer/run_estimate.h"

#include <algorithm>

#include "base/status.h"

namespace graft::trainer {
namespace {

int64_t EncoderParameters(const adapters::PromptEncoderChoice& encoder) {
  int64_t count = 0;
  for (const adapters::ParameterSpec& weight : encoder.facts.weights)
    count += c10::multiply_integers(weight.shape);
  return count;
}

// A prompt encoder's work on one prompt.
struct EncoderFlop {
  double forward = 0, backward = 0;
};

EncoderFlop EncoderFlopOf(const models::ModelConfig& config, bool trained, int64_t length) {
  EncoderFlop flop;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    flop.forward += sharding::LayerForwardFlop(config, layer, length, 1.0);
    if (!trained) continue;
    flop.backward += sharding::LayerBackwardFlop(config, layer, length, 1.0) +
                     2.0 * static_cast<double>(sharding::LayerMatmulParameters(config, layer));
  }
  flop.forward *= static_cast<double>(length);
  flop.backward *= static_cast<double>(length);
  return flop;
}

}  // namespace

int64_t MicroBatchesOf(const Recipe& recipe) {
  const int64_t share = recipe.optim.global_batch / recipe.parallel.data;
  return (share + recipe.optim.micro_batch - 1) / recipe.optim.micro_batch;
}

absl::StatusOr<sharding::PlanWork> PlanWorkOf(const Recipe& recipe, const AdapterChoice& adapter,
                                              const WorkShape& shape, bool on_gpu) {
  const adapters::Method& method = *adapter.method;
  const torch::Dtype dtype = RecipeDtype(recipe);
  sharding::PlanWork work;
  GRAFT_ASSIGN_OR_RETURN(work.schedule, sharding::ParseSchedule(recipe.parallel.schedule));
  work.data = static_cast<int>(recipe.parallel.data);
  const int64_t share = recipe.optim.global_batch / recipe.parallel.data;
  const int64_t samples = std::min(share, recipe.optim.micro_batch);
  work.micro_batches = static_cast<int>(MicroBatchesOf(recipe));
  work.sequence_length = shape.sequence_length + method.virtual_rows();
  work.shape = {
      .element_bytes = dtype == torch::kBFloat16 ? 2 : 4,
      .micro_batch_tokens = samples * work.sequence_length,
      .head_share = shape.head_share * static_cast<double>(shape.sequence_length) /
                    static_cast<double>(std::max<int64_t>(1, work.sequence_length)),
      .recompute = recipe.model.recompute == "layer",
      .packed_twice = !on_gpu && models::PacksWeights(dtype),
      .on_gpu = on_gpu,
      .quantize = models::ParseQuantization(recipe.model.quantize),
      .replicas = work.data,
      .shards = recipe.parallel.shard_weights ? work.data : 1,
      .recordings = on_gpu && recipe.parallel.cuda_graphs,
      .language_head = shape.outputs == 0,
      .trains_backbone = method.trains_backbone(),
      .base_bytes = on_gpu ? sharding::kGpuBaseBytes : 0.0,
  };
  for (const models::SiteSpec& site : adapter.matched) {
    const auto layer = static_cast<size_t>(site.id.layer);
    if (layer >= work.kept_per_row.size()) work.kept_per_row.resize(layer + 1);
    work.kept_per_row[layer] += method.KeptPerRow(site);
  }
  const adapters::PromptEncoderChoice* const encoder = method.prompt_encoder();
  if (encoder == nullptr) return work;
  (encoder->train ? work.trained_encoder_parameters : work.encoder_parameters) =
      EncoderParameters(*encoder);
  GRAFT_ASSIGN_OR_RETURN(const models::ModelConfig encoder_config,
                         models::ReadModelConfig(encoder->path));
  for (int64_t layer = 0; !encoder->train && layer < encoder_config.num_layers; ++layer)
    work.encoder_packed_parameters += sharding::LayerMatmulParameters(encoder_config, layer);
  const EncoderFlop flop = EncoderFlopOf(encoder_config, encoder->train, shape.encoder_length);
  work.encoder_forward_flop = static_cast<double>(samples) * flop.forward;
  work.encoder_backward_flop = static_cast<double>(samples) * flop.backward;
  return work;
}

SampleFlop::SampleFlop(const Recipe& recipe, const LoadedModel& model)
    : config_(model.config()),
      recompute_(recipe.model.recompute == "layer"),
      virtual_rows_(model.method().virtual_rows()) {
  work_.trains_backbone = model.method().trains_backbone();
  work_.language_head = model.outputs() == 0;
  work_.first_trained_layer = model.plan().first_trained_layer;
  if (!work_.trains_backbone)
    work_.adapter_parameters = model.trainable_parameters() - model.encoder_parameters();
  if (const auto* encoder = model.method().prompt_encoder(); encoder != nullptr) {
    encoder_ = ValueOrThrow(models::ReadModelConfig(encoder->path));
    trains_encoder_ = encoder->train;
  }
}

FlopCount SampleFlop::Of(const Dataset& data, const std::vector<int64_t>& samples) const {
  FlopCount count;
  for (const int64_t sample : samples) {
    sharding::WorkShape work = work_;
    work.sequence_length = data.total_tokens(sample) + virtual_rows_;
    const auto tokens = static_cast<double>(work.sequence_length);
    work.head_share = static_cast<double>(data.trained_tokens(sample)) / tokens;
    count.model += tokens * sharding::TrainingFlopPerToken(config_, work);
    work.recompute = recompute_;
    count.hardware += tokens * sharding::TrainingFlopPerToken(config_, work);
    if (!encoder_.has_value()) continue;
    const auto length = static_cast<int64_t>(data.at(sample).encoder_ids.size());
    const EncoderFlop encoder = EncoderFlopOf(*encoder_, trains_encoder_, length);
    count.model += encoder.forward + encoder.backward;
    count.hardware += encoder.forward + encoder.backward;
  }
  return count;
}

}  // namespace graft::trainer
