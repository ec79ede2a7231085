// The cost model: FLOP per token, memory per rank and traffic of adapter training, from a model's
// numbers alone (performance.md 1). Used by the stage split, by `plan` and by benchmarks and
// reports; there is no second implementation. No tensors, no timing.
//
// Symbols as in performance.md: P matmul parameters with the LM head, L layers, h hidden width, f
// FFN width, V vocabulary, S sequence length, T tokens of a micro-batch, E bytes per element, d
// data replicas.
#pragma once

#include <cstdint>

#include "models/model_config.h"
#include "models/weights/quantize.h"

namespace graft::sharding {

// Parameters that take part in matrix products. Layers differ in encoder-decoder models only.
int64_t LayerMatmulParameters(const models::ModelConfig& config, int64_t layer = 0);
int64_t HeadMatmulParameters(const models::ModelConfig& config);  // h V, also when tied
int64_t MatmulParameters(const models::ModelConfig& config);      // P
// Bytes of those of one layer as int8 or nf4, scales included.
int64_t LayerQuantizedBytes(const models::ModelConfig& config, models::Quantization kind,
                            int64_t layer = 0);
// With norms and biases: what a stage loads.
int64_t LayerParameters(const models::ModelConfig& config, int64_t layer = 0);
// Of layers [begin, end).
int64_t LayersParameters(const models::ModelConfig& config, int64_t begin, int64_t end);
int64_t EmbeddingParameters(const models::ModelConfig& config);
int64_t HeadParameters(const models::ModelConfig& config);  // final norm + LM head; encoder: 0

// FLOP of one layer for one token at sequence length S; the causal half of attention is counted.
// Of an encoder-decoder model S and the tokens are those of input and target together, `head_share`
// of them the target's: an encoder's layer runs on the others only.
double LayerForwardFlop(const models::ModelConfig& config, int64_t layer, int64_t sequence_length,
                        double head_share);
// Input gradients only: frozen weights have no weight gradient.
double LayerBackwardFlop(const models::ModelConfig& config, int64_t layer, int64_t sequence_length,
                         double head_share);

struct WorkShape {
  int64_t sequence_length = 0;     // S
  int64_t adapter_parameters = 0;  // of the whole model
  int first_trained_layer = 0;     // layers below it run forward only
  double head_share = 1.0;         // supervised share s of the positions
  bool recompute = false;          // each trained layer runs forward twice
  bool trains_backbone = false;    // gradients of its weights too; they are no adapter_parameters
  bool language_head = true;       // projection to the vocabulary; else a task's own small head
};
// FLOP of one training step per token. Summed over layers and head, so that a frozen prefix leaves
// out exactly its own backward and a recomputation its own forward; the head is never recomputed
// (its gradient is made in the forward pass).
double TrainingFlopPerToken(const models::ModelConfig& config, const WorkShape& work);

// Bytes that autograd keeps per token and layer: block input, mid-block residual, q, k, v,
// attention output, gate and up (without a gate: up), plus float32 statistics (per norm 1/rms, or
// mean and 1/std; one log-sum-exp per head).
int64_t LeanElementBytes(const models::ModelConfig& config, int64_t element_bytes);
int64_t StatisticsBytes(const models::ModelConfig& config);

// What one rank holds.
struct RankPart {
  int layers = 0;
  int trained_layers = 0;  // those that keep activations for a backward pass
  int decoder_layers = 0;  // of `layers`, those of a decoder that reads an encoder
  int trained_decoder_layers = 0;
  int chunks = 1;
  bool embed = false;
  bool head = false;
  int64_t adapter_parameters = 0;
  double kept_per_token = 0;  // numbers that edits of the trained layers keep (Method::KeptPerRow)
  int in_flight =
      0;  // (micro-batch, chunk) pairs between their forward and backward passes, at most
  bool boundaries = false;  // hidden states and gradients come or go: more than one stage
};

// What is the same on every rank of a job.
struct MemoryShape {
  int64_t element_bytes = 4;       // E of the frozen weights and activations
  int64_t micro_batch_tokens = 0;  // T
  double head_share = 1.0;         // encoder-decoder models: the target's share of T
  bool recompute = false;
  bool packed_twice = false;  // CPU: weights packed for the forward and for the backward product
  bool on_gpu = false;        // larger chunks of logits; a quantised matrix is whole in a product
  models::Quantization quantize = models::Quantization::kNone;  // of the layers' matrices
  int replicas = 1;              // among which the copy that a checkpoint is written from is shared
  int shards = 1;                // shard_weights: replicas that share the layers' matrices
  bool recordings = false;       // cuda_graphs: passes are recorded, on a stream of their own
  bool language_head = true;     // else a task's own small head
  bool trains_backbone = false;  // nothing frozen; layers run through autograd's own operators
  double base_bytes = 0;         // of the program itself
};

// Bytes by purpose. `head` (a chunk of logits and its gradient, at the end of a forward pass) and
// `workspace` (gradients inside one layer, in a backward pass) do not exist at the same time.
struct RankMemory {
  double base = 0, frozen = 0, gathered = 0, adapters = 0, activations = 0, boundaries = 0,
         head = 0, workspace = 0;
  // What recorded passes run in, beside what the launched ones before them took and keep.
  double recordings = 0;
  double temporary() const { return head > workspace ? head : workspace; }
  double total() const {
    return base + frozen + gathered + adapters + activations + boundaries + temporary() +
           recordings;
  }
};
// What LibTorch's libraries take from its allocator on a GPU: cuBLAS's workspaces.
inline constexpr double kGpuBaseBytes = 64.0 * (1 << 20);
// Of one layer's matrices as they are stored, whole and once.
double LayerMatrixBytes(const models::ModelConfig& config, const MemoryShape& shape,
                        int64_t layer = 0);
RankMemory MemoryOfRank(const models::ModelConfig& config, const RankPart& part,
                        const MemoryShape& shape);

struct Link {
  double bytes_per_second = 0;
  double latency_seconds = 0;
};
// Ring all-reduce of one stage's float32 adapter gradients over `data` replicas.
double AllReduceSeconds(int64_t stage_adapter_parameters, int data, const Link& link);
// One micro-batch, one direction.
int64_t BoundaryBytes(const models::ModelConfig& config, int64_t micro_batch_tokens,
                      int64_t element_bytes);

}  // namespace graft::sharding
