#include "sharding/cost_model.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace graft::sharding {
namespace {

using models::ModelConfig;

// Float32 master, gradient and two moments; and master and moments as the last checkpoint has them.
constexpr double kAdapterBytes = 16, kSnapshotBytes = 12;
// The loss works through this many positions at a time, and less where the logits would pass the
// byte limit (models/layers/head_loss.cc).
constexpr int64_t kLossChunkPositions = 1024;
constexpr int64_t kLossChunkBytes = int64_t{64} << 20, kGpuLossChunkBytes = int64_t{512} << 20;
constexpr int64_t kBuffersPerDirection = 2;

// Parameters of one normalisation over the hidden width.
int64_t NormParameters(const ModelConfig& config) {
  return (config.layer_norm ? 2 : 1) * config.hidden_size;
}

// (outputs, inputs) of every matrix of a layer.
std::vector<std::pair<int64_t, int64_t>> LayerMatrices(const ModelConfig& config, int64_t layer) {
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  std::vector<std::pair<int64_t, int64_t>> matrices;
  for (int i = 0; i < (config.is_decoder_layer(layer) ? 2 : 1); ++i) {
    matrices.insert(matrices.end(), {{config.q_width(), width},
                                     {config.kv_width(), width},
                                     {config.kv_width(), width},
                                     {width, config.q_width()}});
  }
  if (config.gated_ffn) matrices.emplace_back(inner, width);
  matrices.insert(matrices.end(), {{inner, width}, {width, inner}});
  return matrices;
}

// FLOP of one layer for one token: products with its weights, and of queries with keys and values.
struct LayerFlop {
  double matmul = 0, attention = 0;
};

LayerFlop FlopOf(const ModelConfig& config, int64_t layer, int64_t sequence_length,
                 double head_share) {
  const double s = static_cast<double>(sequence_length),
               width = static_cast<double>(config.q_width());
  const double matmul = 2.0 * static_cast<double>(LayerMatmulParameters(config, layer));
  // Half of the keys are seen on average: a / L of performance.md 1.1.
  if (!config.has_encoder()) return {matmul, 2.0 * s * width};
  const double source = 1.0 - head_share, target = head_share;
  if (!config.is_decoder_layer(layer)) return {source * matmul, source * 4.0 * s * source * width};
  // Cross attention's keys and values are made of the input's tokens.
  const double of_source =
      4.0 * static_cast<double>(config.hidden_size) * static_cast<double>(config.kv_width());
  return {target * (matmul - of_source) + source * of_source,
          target * (2.0 * s * target + 4.0 * s * source) * width};
}

// What autograd's own operators keep of a layer beyond that, for one token: the input of
// `ffn.down`, and of each norm the result; of RMSNorm the input in float32 and the quotient too.
double KeptByAutograd(const ModelConfig& config, int64_t element_bytes) {
  const auto element = static_cast<double>(element_bytes);
  const auto width = static_cast<double>(config.hidden_size);
  double norm = element * width;
  if (!config.layer_norm) norm += element * width + (element_bytes < 4 ? 4.0 * width : 0.0);
  return element * static_cast<double>(config.intermediate_size) + 2.0 * norm;
}

// The widest moment of a layer's backward pass, for one token: gradients of the FFN's inner states
// and the state rebuilt from them, of its input by each matrix, and of the residual stream.
double LayerWorkspace(const ModelConfig& config, int64_t element_bytes) {
  return static_cast<double>(element_bytes) * 4.0 *
         static_cast<double>(config.intermediate_size + config.hidden_size);
}

// W~ of the largest quantised matrix, which a GPU makes whole for a product.
double LargestMatrixBytes(const ModelConfig& config, int64_t element_bytes) {
  int64_t largest = 0;
  for (const auto& [out, in] : LayerMatrices(config, 0)) largest = std::max(largest, out * in);
  return static_cast<double>(element_bytes * largest);
}

// A chunk of float32 logits, which their gradient replaces, the product in the model's numbers, and
// what a trained head adds.
double HeadWorkspace(const ModelConfig& config, const MemoryShape& shape) {
  const int64_t limit = shape.on_gpu ? kGpuLossChunkBytes : kLossChunkBytes;
  const int64_t positions = std::clamp<int64_t>(
      limit / (config.vocab_size * static_cast<int64_t>(sizeof(float))), 1, kLossChunkPositions);
  // A bfloat16 product is copied to float32 numbers. On a CPU's heap its place is mostly taken out
  // of what the float32 numbers of the chunk before have left, so that the next ones find no room
  // there: measured, one chunk of them more.
  int64_t copies = 0;
  if (shape.element_bytes < 4) copies = shape.element_bytes + (shape.on_gpu ? 0 : 4);
  const auto logits = static_cast<double>(positions * config.vocab_size * (4 + copies));
  if (!shape.trains_backbone) return logits;
  // The gradient of the projection is made beside the loss.
  return logits + 4.0 * static_cast<double>(HeadMatmulParameters(config));
}

// Bytes that a layer keeps for its backward pass, for one token of the micro-batch.
double KeptBytes(const ModelConfig& config, bool decoder, const MemoryShape& shape) {
  const double lean =
      static_cast<double>(LeanElementBytes(config, shape.element_bytes) + StatisticsBytes(config)) +
      (shape.trains_backbone ? KeptByAutograd(config, shape.element_bytes) : 0.0);
  if (!config.has_encoder()) return lean;
  const double source = 1.0 - shape.head_share, target = shape.head_share;
  if (!decoder) return source * lean;
  // Cross attention: residual, queries and output; keys and values of the input.
  const double element = static_cast<double>(shape.element_bytes);
  return target *
             (lean + element * static_cast<double>(config.hidden_size + 2 * config.q_width())) +
         source * element * 2.0 * static_cast<double>(config.kv_width());
}

}  // namespace

int64_t LayerMatmulParameters(const ModelConfig& config, int64_t layer) {
  int64_t count = 0;
  for (const auto& [out, in] : LayerMatrices(config, layer)) count += out * in;
  return count;
}

int64_t HeadMatmulParameters(const ModelConfig& config) {
  // An encoder's head is a small one of the task.
  return config.hidden_size * (config.causal ? config.vocab_size : config.hidden_size);
}

int64_t MatmulParameters(const ModelConfig& config) {
  int64_t count = HeadMatmulParameters(config);
  for (int64_t i = 0; i < config.num_layers; ++i) count += LayerMatmulParameters(config, i);
  return count;
}

int64_t LayerQuantizedBytes(const ModelConfig& config, models::Quantization kind, int64_t layer) {
  int64_t bytes = 0;
  for (const auto& [out, in] : LayerMatrices(config, layer)) {
    bytes += models::QuantizedShape{kind, out, in}.bytes();
  }
  return bytes;
}

int64_t LayerParameters(const ModelConfig& config, int64_t layer) {
  const int64_t norms = config.is_decoder_layer(layer) ? 3 : 2;
  int64_t count = LayerMatmulParameters(config, layer) + norms * NormParameters(config);
  if (config.has_encoder()) {
    // The first layer of a stack has its bias table, the last of the encoder the stack's norm.
    if (layer == 0 || layer == config.encoder_layers) {
      count += config.relative_buckets * config.num_heads;
    }
    if (layer == config.encoder_layers - 1) count += NormParameters(config);
  }
  if (config.qkv_bias) count += config.q_width() + 2 * config.kv_width();
  if (config.attention_out_bias) count += config.hidden_size;
  if (config.mlp_bias) {
    count += (config.gated_ffn ? 2 : 1) * config.intermediate_size + config.hidden_size;
  }
  return count;
}

int64_t LayersParameters(const ModelConfig& config, int64_t begin, int64_t end) {
  int64_t count = 0;
  for (int64_t i = begin; i < end; ++i) count += LayerParameters(config, i);
  return count;
}

int64_t EmbeddingParameters(const ModelConfig& config) {
  const int64_t rows = config.vocab_size + config.position_rows + config.token_types;
  return config.hidden_size * rows + (config.causal ? 0 : NormParameters(config));
}

int64_t HeadParameters(const ModelConfig& config) {
  return config.causal ? NormParameters(config) + HeadMatmulParameters(config) : 0;
}

double LayerForwardFlop(const ModelConfig& config, int64_t layer, int64_t sequence_length,
                        double head_share) {
  const LayerFlop flop = FlopOf(config, layer, sequence_length, head_share);
  return flop.matmul + flop.attention;
}

double LayerBackwardFlop(const ModelConfig& config, int64_t layer, int64_t sequence_length,
                         double head_share) {
  const LayerFlop flop = FlopOf(config, layer, sequence_length, head_share);
  return flop.matmul + 2.5 * flop.attention;
}

double TrainingFlopPerToken(const ModelConfig& config, const WorkShape& work) {
  // A trained matrix adds the product that is its gradient.
  const double of_weights = work.trains_backbone ? 2.0 : 0.0;
  double flop = 6.0 * static_cast<double>(work.adapter_parameters);
  if (work.language_head) {
    flop +=
        (4.0 + of_weights) * static_cast<double>(HeadMatmulParameters(config)) * work.head_share;
  }
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const double forward = LayerForwardFlop(config, i, work.sequence_length, work.head_share);
    flop += forward;
    if (i < work.first_trained_layer) continue;
    flop += LayerBackwardFlop(config, i, work.sequence_length, work.head_share) +
            of_weights * static_cast<double>(LayerMatmulParameters(config, i)) +
            (work.recompute ? forward : 0.0);
  }
  return flop;
}

int64_t LeanElementBytes(const ModelConfig& config, int64_t element_bytes) {
  return element_bytes * (2 * (config.hidden_size + config.q_width() + config.kv_width()) +
                          (config.gated_ffn ? 2 : 1) * config.intermediate_size);
}

int64_t StatisticsBytes(const ModelConfig& config) {
  return 4 * ((config.layer_norm ? 4 : 2) + config.num_heads);
}

double LayerMatrixBytes(const ModelConfig& config, const MemoryShape& shape, int64_t layer) {
  if (shape.quantize != models::Quantization::kNone) {
    return static_cast<double>(LayerQuantizedBytes(config, shape.quantize, layer));
  }
  return static_cast<double>(shape.element_bytes * LayerMatmulParameters(config, layer));
}

RankMemory MemoryOfRank(const ModelConfig& config, const RankPart& part, const MemoryShape& shape) {
  const double element = static_cast<double>(shape.element_bytes);
  const double tokens = static_cast<double>(shape.micro_batch_tokens);
  const double width = static_cast<double>(config.hidden_size);
  RankMemory memory;
  memory.base = shape.base_bytes;

  // Layers of one kind are alike but for a bias table and a norm, which count as those of layer 0.
  const int64_t a_decoder = config.num_layers - 1;
  const auto of_kinds = [&part](auto first, auto decoder) {
    return (part.layers - part.decoder_layers) * static_cast<double>(first) +
           part.decoder_layers * static_cast<double>(decoder);
  };
  const double matmul =
      of_kinds(LayerMatmulParameters(config), LayerMatmulParameters(config, a_decoder));
  double other = of_kinds(LayerParameters(config), LayerParameters(config, a_decoder)) - matmul;
  // Shared and quantised matrices are multiplied as they are stored.
  const bool stored = shape.shards > 1 || shape.quantize != models::Quantization::kNone;
  const double of_layers =
      of_kinds(LayerMatrixBytes(config, shape), LayerMatrixBytes(config, shape, a_decoder));
  if (shape.shards > 1) {
    memory.gathered =
        std::min(2, part.layers) *
        std::max(LayerMatrixBytes(config, shape),
                 part.decoder_layers > 0 ? LayerMatrixBytes(config, shape, a_decoder) : 0.0);
  }
  if (part.embed) other += static_cast<double>(EmbeddingParameters(config));
  // A tied table that this rank has already loaded for the embedding is there once, unless its
  // products have a form of their own; a task head counts with the adapter.
  const bool shares_table = part.embed && config.tie_word_embeddings && !shape.packed_twice;
  const bool projects = part.head && config.causal && shape.language_head;
  const double head =
      projects && !shares_table ? static_cast<double>(HeadMatmulParameters(config)) : 0.0;
  if (part.head && config.causal) other += static_cast<double>(NormParameters(config));
  const int copies = shape.packed_twice ? 2 : 1;
  if (!shape.trains_backbone) {
    memory.frozen =
        of_layers * (stored ? 1 : copies) / shape.shards + element * (head * copies + other);
  } else if (shape.element_bytes < 4) {
    memory.frozen = element * (matmul + head);  // the matrices as a pass computes with them
  }

  // A GPU's snapshot lies in host memory.
  memory.adapters = static_cast<double>(part.adapter_parameters) *
                    (kAdapterBytes + (shape.on_gpu ? 0.0 : kSnapshotBytes / shape.replicas));

  const int trained_first = part.trained_layers - part.trained_decoder_layers;
  const double first = KeptBytes(config, false, shape), decoder = KeptBytes(config, true, shape);
  if (shape.recompute) {
    memory.activations =
        part.in_flight * tokens * part.trained_layers / part.chunks * element * width +
        tokens * std::max(trained_first > 0 ? first : 0.0,
                          part.trained_decoder_layers > 0 ? decoder : 0.0);
    if (part.trained_layers > 0)
      memory.activations += tokens * element * part.kept_per_token / part.trained_layers;
  } else {
    memory.activations = part.in_flight * tokens / part.chunks *
                         (trained_first * first + part.trained_decoder_layers * decoder +
                          element * part.kept_per_token);
  }
  if (part.boundaries) memory.boundaries = 2.0 * kBuffersPerDirection * tokens * width * element;
  if (projects) memory.head = HeadWorkspace(config, shape);
  if (part.trained_layers > 0) {
    memory.workspace = tokens * LayerWorkspace(config, shape.element_bytes);
    if (shape.on_gpu && shape.quantize != models::Quantization::kNone)
      memory.workspace += LargestMatrixBytes(config, shape.element_bytes);
  }
  if (shape.recordings)
    memory.recordings = shape.base_bytes + memory.activations + memory.temporary();
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
