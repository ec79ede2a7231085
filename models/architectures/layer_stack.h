// What the architectures share: loading frozen parts by HF name, the walk over the layers with
// recomputation and key-value caches, and the language-model head. An architecture adds its layer.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "models/backbone.h"
#include "models/layers/attention.h"
#include "models/layers/frozen_linear.h"
#include "models/layers/gathered_weight.h"
#include "models/layers/head_loss.h"
#include "models/layers/norm.h"
#include "models/weights/weight_source.h"

namespace graft::models {

// Loads parts of one stage and counts them: frozen, or with train_weights as leaves that are
// trained. Errors: kind input as of WeightSource::Load.
class PartLoader {
 public:
  PartLoader(WeightSource& weights, const BackboneOptions& options)
      : weights_(weights),
        dtype_(options.dtype),
        device_(options.device),
        train_(options.train_weights),
        first_trained_layer_(options.first_trained_layer),
        quantize_(options.quantize),
        memory_(options.layer_memory) {}

  // Around the parts of one layer; with options.layer_memory its matrices are kept there.
  void BeginLayer(int layer);
  void EndLayer();

  // {name}.weight (out, in) and, where there is one, {name}.bias (out).
  absl::Status LoadLinear(const std::string& name, int64_t out, int64_t in, bool bias,
                          FrozenLinear* linear);
  // HF's Conv1D: {name}.weight (in, out), {name}.bias (out), cut into equal linears over its
  // outputs (one for each of `linears`). No copy: each is a view of the stored tensor.
  absl::Status LoadConv1D(const std::string& name, int64_t out, int64_t in,
                          const std::vector<FrozenLinear*>& linears);
  // {name}.weight and, for LayerNorm, {name}.bias, as float32.
  absl::Status LoadNorm(const std::string& name, int64_t width, bool layer_norm, double eps,
                        Norm* norm);
  // An embedding (looked up, and the head's matrix when tied) or an untied head (products only):
  // {name}.weight (rows, width). `padding_row`: see TrainedMatrix.
  absl::Status LoadTable(const std::string& name, int64_t rows, int64_t width, FrozenUse use,
                         std::shared_ptr<const FrozenWeight>* table, int64_t padding_row = -1);

  // What an architecture computes with instead of the loaded vector or table {name}.
  void NoteDerived(const std::string& name, const torch::Tensor& derived) {
    weights_.NoteCopy(name, derived);
  }

  int64_t parameters() const { return parameters_; }
  int64_t bytes() const { return bytes_; }
  const QuantizationReport& quantization() const { return quantization_; }
  // With train_weights, in the order of loading.
  std::vector<std::pair<std::string, torch::Tensor>> TakeTrained() { return std::move(trained_); }

 private:
  // A leaf of float32 that is trained.
  absl::StatusOr<torch::Tensor> LoadLeaf(const std::string& name,
                                         const std::vector<int64_t>& shape);
  absl::StatusOr<torch::Tensor> Load(const std::string& name, const std::vector<int64_t>& shape);
  // `host` where the layers compute.
  torch::Tensor Move(const std::string& name, const torch::Tensor& host);
  absl::StatusOr<torch::Tensor> LoadVector(const std::string& name, int64_t width);
  // Of a layer's frozen matrix: what Freeze wants.
  torch::Dtype MatrixType() const {
    return quantize_ == Quantization::kNone ? dtype_ : torch::kFloat32;
  }
  // In the form and the place that the options ask for.
  std::shared_ptr<const FrozenWeight> Freeze(const std::string& name, torch::Tensor weight);
  void Count(const FrozenLinear& linear);

  WeightSource& weights_;
  torch::Dtype dtype_;
  torch::Device device_;
  bool train_;
  int first_trained_layer_;
  Quantization quantize_;
  QuantizationReport quantization_;
  std::shared_ptr<LayerMemory> memory_;
  int layer_ = 0;
  std::unique_ptr<LayerPacker> packer_;  // between BeginLayer and EndLayer
  std::vector<std::pair<std::string, torch::Tensor>> trained_;
  int64_t parameters_ = 0, bytes_ = 0;
};

class LayerStack : public Backbone {
 public:
  int64_t frozen_parameters() const override { return parameters_; }
  int64_t frozen_bytes() const override { return bytes_; }
  torch::Tensor LossSum(const torch::Tensor& h, SiteContext& context) override;
  torch::Tensor TaskOutputs(const torch::Tensor& h, SiteContext& context) override;
  TargetResults EvaluateTargets(const torch::Tensor& h, SiteContext& context) override;
  torch::Tensor Logits(const torch::Tensor& h, const std::vector<int64_t>& rows) override;
  std::unique_ptr<KvCache> NewKvCache(KvCacheRoom room) const override;

 protected:
  LayerStack(const ModelConfig& config, LayerRange range, const BackboneOptions& options)
      : Backbone(config, range, options.device), options_(options) {}

  // One layer: (its number in the range, x (N, D), context with `layer` set, cache or null) -> (N,
  // D). Copied where layers are recomputed: it holds tensors by value.
  using LayerBody =
      std::function<torch::Tensor(size_t, torch::Tensor, SiteContext&, LayerKvCache*)>;
  // All layers of the range.
  torch::Tensor RunLayers(torch::Tensor h, SiteContext& context, KvCache* cache,
                          const LayerBody& body) const {
    return RunLayers(std::move(h), 0, static_cast<size_t>(range_.num_layers), context, cache, body);
  }
  // Layers [begin, end) of the range.
  torch::Tensor RunLayers(torch::Tensor h, size_t begin, size_t end, SiteContext& context,
                          KvCache* cache, const LayerBody& body) const;
  // Loads the layers of the range, one after the other: load(number in the model, in the range).
  absl::Status LoadLayers(PartLoader& loader,
                          const std::function<absl::Status(int, size_t)>& load) const;
  // The state that stands for each sample, (S, D). Here: its last row, behind the final norm.
  virtual torch::Tensor Pool(const torch::Tensor& h, const MicroBatch& batch) const;
  // A linear with the hooks of its site.
  torch::Tensor Linear(const FrozenLinear& linear, Role role, SiteInput x,
                       SiteContext& context) const;
  torch::Tensor Attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                       const AttentionShape& shape, SiteContext& context,
                       LayerKvCache* cache) const;
  // Of the pass, (N) int64 where the tables lie.
  torch::Tensor TokenIds(const SiteContext& context) const;
  // Token embeddings with the hooks of `embed`, before positions are added: (N, D).
  torch::Tensor EmbedTokens(const FrozenWeight& table, SiteContext& context) const;
  // The projection to the vocabulary: `embedding` when the config ties them, else {name}; none when
  // a task head stands in its place.
  absl::Status LoadProjection(PartLoader& loader, const std::string& name,
                              std::shared_ptr<const FrozenWeight> embedding);
  bool NeedsEmbedding() const {
    return range_.embed || (range_.head && config_.tie_word_embeddings && options_.language_head);
  }
  // Rows of it are looked up only where samples begin.
  FrozenUse EmbeddingUse() const {
    return range_.embed ? FrozenUse::kProductsAndLookup : FrozenUse::kProducts;
  }
  void TakeCounts(PartLoader& loader) {
    parameters_ = loader.parameters();
    bytes_ = loader.bytes();
    quantization_ = loader.quantization();
    trained_weights_ = loader.TakeTrained();
  }

  BackboneOptions options_;
  LossHead head_;

 private:
  int64_t parameters_ = 0, bytes_ = 0;
};

// The sites of one layer in the fixed order: `linears`, then the hidden states around them.
// attn.out and ffn.out are the outputs of the modules `attention_out` and `ffn_out`.
void AppendLayerSites(const ModelConfig& config, int layer, const std::string& module,
                      std::vector<SiteSpec> linears, std::vector<SiteSpec>* sites);

}  // namespace graft::models
