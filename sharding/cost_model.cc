#include "sharding/cost_model.h"

#include <algorithm>

namespace graft::sharding {
namespace {

using models::ModelConfig;

// Float32 master, gradient and two moments.
constexpr int64_t kAdapterBytes = 16;
// The loss works through this many positions at a time, and less where the logits would pass the
// byte limit.
constexpr int64_t kLossChunkPositions = 1024;
constexpr int64_t kLossChunkBytes = int64_t{64} << 20;
constexpr int64_t kBuffersPerDirection = 2;

// Parameters of one normalisation over the hidden width.
int64_t NormParameters(const ModelConfig& config) {
  return (config.layer_norm ? 2 : 1) * config.hidden_size;
}

// a / L of performance.md 1.1.
double LayerAttentionFlop(const ModelConfig& config, int64_t sequence_length) {
  return 2.0 * static_cast<double>(sequence_length) * static_cast<double>(config.q_width());
}

}  // namespace

int64_t LayerMatmulParameters(const ModelConfig& config) {
  const int64_t h = config.hidden_size;
  const int64_t attention = 2 * h * config.q_width() + 2 * h * config.kv_width();
  return attention + (config.gated_ffn ? 3 : 2) * h * config.intermediate_size;
}

int64_t HeadMatmulParameters(const ModelConfig& config) {
  // An encoder's head is a small one of the task.
  return config.hidden_size * (config.causal ? config.vocab_size : config.hidden_size);
}

int64_t MatmulParameters(const ModelConfig& config) {
  return config.num_layers * LayerMatmulParameters(config) + HeadMatmulParameters(config);
}

int64_t LayerParameters(const ModelConfig& config) {
  int64_t count = LayerMatmulParameters(config) + 2 * NormParameters(config);
  if (config.qkv_bias) count += config.q_width() + 2 * config.kv_width();
  if (config.attention_out_bias) count += config.hidden_size;
  if (config.mlp_bias) {
    count += (config.gated_ffn ? 2 : 1) * config.intermediate_size + config.hidden_size;
  }
  return count;
}

int64_t EmbeddingParameters(const ModelConfig& config) {
  const int64_t rows = config.vocab_size + config.position_rows + config.token_types;
  return config.hidden_size * rows + (config.causal ? 0 : NormParameters(config));
}

int64_t HeadParameters(const ModelConfig& config) {
  return config.causal ? NormParameters(config) + HeadMatmulParameters(config) : 0;
}

double LayerForwardFlop(const ModelConfig& config, int64_t sequence_length) {
  return 2.0 * static_cast<double>(LayerMatmulParameters(config)) +
         LayerAttentionFlop(config, sequence_length);
}

double LayerBackwardFlop(const ModelConfig& config, int64_t sequence_length) {
  return 2.0 * static_cast<double>(LayerMatmulParameters(config)) +
         2.5 * LayerAttentionFlop(config, sequence_length);
}

double TrainingFlopPerToken(const ModelConfig& config, const WorkShape& work) {
  const double layers = static_cast<double>(config.num_layers);
  const double trained =
      std::clamp(layers - static_cast<double>(work.first_trained_layer), 0.0, layers);
  const double forward = LayerForwardFlop(config, work.sequence_length);
  const double head = 4.0 * static_cast<double>(HeadMatmulParameters(config)) * work.head_share;
  const double again = work.recompute ? trained * forward : 0.0;
  return layers * forward + trained * LayerBackwardFlop(config, work.sequence_length) + again +
         head + 6.0 * static_cast<double>(work.adapter_parameters);
}

int64_t LeanElementBytes(const ModelConfig& config, int64_t element_bytes) {
  return element_bytes * (2 * (config.hidden_size + config.q_width() + config.kv_width()) +
                          (config.gated_ffn ? 2 : 1) * config.intermediate_size);
}

int64_t StatisticsBytes(const ModelConfig& config) {
  return 4 * ((config.layer_norm ? 4 : 2) + config.num_heads);
}

RankMemory MemoryOfRank(const ModelConfig& config, const RankPart& part, const MemoryShape& shape) {
  const double element = static_cast<double>(shape.element_bytes);
  const double tokens = static_cast<double>(shape.micro_batch_tokens);
  const double width = static_cast<double>(config.hidden_size);
  RankMemory memory;

  double matmul = part.layers * static_cast<double>(LayerMatmulParameters(config));
  double other =
      part.layers * static_cast<double>(LayerParameters(config) - LayerMatmulParameters(config));
  if (part.embed) other += static_cast<double>(EmbeddingParameters(config));
  // A tied table that this rank has already loaded for the embedding is there once, unless its
  // products have a form of their own; a task head counts with the adapter.
  const bool shares_table = part.embed && config.tie_word_embeddings && !shape.packed_twice;
  if (part.head && config.causal && !shares_table) {
    matmul += static_cast<double>(HeadMatmulParameters(config));
  }
  if (part.head && config.causal) other += static_cast<double>(NormParameters(config));
  memory.frozen = element * (matmul * (shape.packed_twice ? 2 : 1) + other);

  memory.adapters = static_cast<double>(kAdapterBytes * part.adapter_parameters);

  const double lean =
      static_cast<double>(LeanElementBytes(config, shape.element_bytes) + StatisticsBytes(config));
  const double trained_per_chunk = static_cast<double>(part.trained_layers) / part.chunks;
  if (shape.recompute) {
    memory.activations = part.in_flight * tokens * trained_per_chunk * element * width +
                         (part.trained_layers > 0 ? tokens * lean : 0.0);
  } else {
    memory.activations = part.in_flight * tokens * trained_per_chunk * lean;
  }
  if (shape.boundaries) memory.boundaries = 2.0 * kBuffersPerDirection * tokens * width * element;
  if (part.head && config.causal) {
    const int64_t positions =
        std::min(kLossChunkPositions,
                 kLossChunkBytes / (config.vocab_size * static_cast<int64_t>(sizeof(float))));
    memory.head = static_cast<double>(std::max<int64_t>(positions, 1) * config.vocab_size *
                                      (shape.element_bytes + 4));
  }
  return memory;
}

double AllReduceSeconds(int64_t stage_adapter_parameters, int data, const Link& link) {
  if (data <= 1) return 0.0;
  const double bytes = 4.0 * static_cast<double>(stage_adapter_parameters);
  return 2.0 * (data - 1) / data * bytes / link.bytes_per_second +
         2.0 * (data - 1) * link.latency_seconds;
}

int64_t BoundaryBytes(const ModelConfig& config, int64_t micro_batch_tokens,
                      int64_t element_bytes) {
  return micro_batch_tokens * config.hidden_size * element_bytes;
}

}  // namespace graft::sharding
