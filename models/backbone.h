// A frozen backbone, or a contiguous part of it: what one pipeline chunk runs. The same object trains, evaluates and generates.
// Sharding decides the range; architectures/ implement it; hooks of the site table edit it.
#pragma once

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "absl/status/statusor.h"
#include "models/model_config.h"
#include "models/site.h"
#include "models/weights/quantize.h"

namespace graft::models {

class LayerMemory;     // models/layers/gathered_weight.h
class WeightSource;    // models/weights/weight_source.h
struct TargetResults;  // models/layers/head_loss.h

// Layers [first_layer, first_layer + num_layers), with the embedding in front and the final norm + head behind where said.
struct LayerRange {
  int first_layer = 0;
  int num_layers = 0;
  bool embed = true;
  bool head = true;
  int end_layer() const { return first_layer + num_layers; }
};

// Keys and values of the layers of one chunk for a set of running sequences (generation only).
class KvCache;
// Room of a cache with fixed places, which decoding steps on a device need (SiteContext::decoding): a number of sequences, and the rows that
// each may have. None: the cache grows, and steps name their sequences by the batch's segments.
struct KvCacheRoom {
  int64_t sequences = 0, rows = 0;
  bool fixed() const { return sequences > 0; }
};

struct BackboneOptions {
  torch::Dtype dtype = torch::kFloat32;   // of frozen weights and activations
  torch::Device device = torch::kCPU;
  bool recompute = false;                 // model.recompute: layer
  bool pool_first_row = false;            // an encoder's task head reads row 0 of a sample, be it a soft prompt's; false: the text's first
  bool train_weights = false;             // method `full`: the weights are float32 leaves (trained_weights()), computed with in `dtype`
  Quantization quantize = Quantization::kNone;  // of the layers' matrices; embeddings and head stay in `dtype`, norms and biases too
  std::shared_ptr<LayerMemory> layer_memory;    // null: this rank has its layers' matrices whole
  // Weights are made ready for training as they are loaded, those of layers from here on for the backward pass too; INT_MAX: on first use.
  int first_trained_layer = std::numeric_limits<int>::max();
  bool language_head = true;              // false: a task head stands at the end, the projection to the vocabulary is not loaded
};

class Backbone {
 public:
  virtual ~Backbone() = default;
  const ModelConfig& config() const { return config_; }
  const LayerRange& range() const { return range_; }
  // Where weights and hidden states lie.
  torch::Device device() const { return device_; }
  // Hooks are added before the first forward pass.
  SiteTable& sites() { return *sites_; }
  virtual int64_t frozen_parameters() const = 0;  // of this part; a tied head on another stage than the embedding counts there too
  virtual int64_t frozen_bytes() const = 0;
  // With train_weights: what this part computes with, by HF name, each a leaf that requires grad; a tensor that several parts use is in each
  // of them (tied embeddings, T5's bias tables). Else empty.
  const std::vector<std::pair<std::string, torch::Tensor>>& trained_weights() const { return trained_weights_; }

  // With options.quantize: how far this part's matrices are from those of the source.
  const QuantizationReport& quantization() const { return quantization_; }

  // batch.tokens -> (N, D). The `embed` site edits the word embeddings of all rows, before position embeddings are added. Only when
  // range().embed.
  virtual torch::Tensor Embed(SiteContext& context) = 0;
  // (N, D) -> (N, D) through the layers of the range. Builds autograd state only where a trained parameter or an input that
  // requires grad lies below. `cache` null: training, evaluation. Else attention also reads and extends the cache.
  virtual torch::Tensor Layers(torch::Tensor h, SiteContext& context, KvCache* cache = nullptr) = 0;
  // Sum of cross-entropies (nats, float64 scalar on h's device, differentiable in h) over batch.target_rows, in chunks; the full
  // logits never exist. Zero targets: a zero that still depends on h. Only when range().head.
  virtual torch::Tensor LossSum(const torch::Tensor& h, SiteContext& context) = 0;
  // Outputs of the task head, (S, C) float32, one row per sample: the hook of the `head` site on the state that stands for the
  // sample (an encoder's first row; a decoder's last, behind the final norm). Only when range().head and the site has a hook.
  virtual torch::Tensor TaskOutputs(const torch::Tensor& h, SiteContext& context) = 0;
  // Cross-entropy of each target and whether the model would say it, no grad. For scoring and evaluation. Only when range().head.
  virtual TargetResults EvaluateTargets(const torch::Tensor& h, SiteContext& context) = 0;
  // Final norm + LM head of the chosen rows: (rows, V) float32. Generation and tests.
  virtual torch::Tensor Logits(const torch::Tensor& h, const std::vector<int64_t>& rows) = 0;

  // With fixed room: decoders only; a sequence's first pass brings its whole prompt, each later one its next row.
  virtual std::unique_ptr<KvCache> NewKvCache(KvCacheRoom room = {}) const = 0;

  // Rows of the word embedding, as the `embed` site sees them: (ids, D). Only when range().embed.
  torch::Tensor WordEmbeddings(const std::vector<int64_t>& ids);

 protected:
  Backbone(ModelConfig config, LayerRange range, torch::Device device = torch::kCPU)
      : config_(std::move(config)), range_(range), device_(device) {}
  ModelConfig config_;
  LayerRange range_;
  torch::Device device_;
  std::shared_ptr<SiteTable> sites_ = std::make_shared<SiteTable>();
  std::vector<std::pair<std::string, torch::Tensor>> trained_weights_;
  QuantizationReport quantization_;
};

// Grows by one call of Layers: each segment of the micro-batch names its sequence by Segment::sample_id; its rows are appended to
// that sequence's keys and values.
class KvCache {
 public:
  virtual ~KvCache() = default;
  virtual void Drop(int64_t sequence) = 0;
  // Beam search: see ForkSequences. A child that shares its parent with others gets its own copy.
  virtual void Fork(const std::vector<SequenceFork>& forks) = 0;
  // Rows so far; not of a cache with fixed room, which leaves that to its caller.
  virtual int64_t Length(int64_t sequence) const = 0;
  virtual KvCacheRoom room() const { return {}; }
  // With fixed room: where a sequence that has begun lies.
  virtual int64_t Place(int64_t sequence) const = 0;
};

// Builds the part `range` of the model, touching only its tensors. Shapes must follow from the config: error kind input.
absl::StatusOr<std::unique_ptr<Backbone>> BuildBackbone(const ModelConfig& config, LayerRange range, WeightSource& weights,
                                                        const BackboneOptions& options);

// Sites of the whole model, in (layer, fixed role) order; `embed` stands first with layer = num_layers. No weights needed.
std::vector<SiteSpec> ListSites(const ModelConfig& config);
// The task head that HF puts on this family, by module: {module}.dense and {module}.out_proj with biases on an encoder, {module} alone
// without a bias on a decoder.
struct TaskHeadModule {
  std::string module;
  bool has_dense = false;
};
TaskHeadModule TaskHeadOf(const ModelConfig& config);
// Parameters of the whole frozen model (tied head counted once), from the config alone.
int64_t CountParameters(const ModelConfig& config);

}  // namespace graft::models
