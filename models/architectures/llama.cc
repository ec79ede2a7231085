#include "models/architectures/llama.h"

#include <string>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "models/layers/attention.h"
#include "models/layers/frozen_linear.h"
#include "models/layers/head_loss.h"
#include "models/layers/recompute.h"
#include "models/layers/rms_norm.h"
#include "models/layers/rope.h"
#include "models/layers/swiglu.h"
#include "models/weights/weight_source.h"

namespace graft::models {
namespace {

constexpr Role kLinearRoles[] = {Role::kAttnQ,   Role::kAttnK, Role::kAttnV,  Role::kAttnO,
                                 Role::kFfnGate, Role::kFfnUp, Role::kFfnDown};

// One linear of a layer, as config.json defines it.
struct LinearSpec {
  const char* module;
  int64_t out_features, in_features;
  bool bias;
};

LinearSpec SpecOf(const ModelConfig& c, Role role) {
  switch (role) {
    case Role::kAttnQ:
      return {"self_attn.q_proj", c.q_width(), c.hidden_size, c.qkv_bias};
    case Role::kAttnK:
      return {"self_attn.k_proj", c.kv_width(), c.hidden_size, c.qkv_bias};
    case Role::kAttnV:
      return {"self_attn.v_proj", c.kv_width(), c.hidden_size, c.qkv_bias};
    case Role::kAttnO:
      return {"self_attn.o_proj", c.hidden_size, c.q_width(), c.attention_out_bias};
    case Role::kFfnGate:
      return {"mlp.gate_proj", c.intermediate_size, c.hidden_size, c.mlp_bias};
    case Role::kFfnUp:
      return {"mlp.up_proj", c.intermediate_size, c.hidden_size, c.mlp_bias};
    default:
      return {"mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias};
  }
}

std::string LayerName(int layer) { return absl::StrCat("model.layers.", layer); }

struct Layer {
  int index = 0;
  torch::Tensor attention_norm, ffn_norm;  // (D) float32
  FrozenLinear linears[7];
  const FrozenLinear& at(Role role) const { return linears[static_cast<size_t>(role)]; }
};

class LlamaKvCache : public KvCache {
 public:
  explicit LlamaKvCache(int num_layers) : layers(static_cast<size_t>(num_layers)) {}
  void Drop(int64_t sequence) override {
    for (LayerKvCache& layer : layers) layer.Drop(sequence);
  }
  int64_t Length(int64_t sequence) const override {
    return layers.empty() ? 0 : layers[0].Length(sequence);
  }
  std::vector<LayerKvCache> layers;
};

class Llama : public Backbone {
 public:
  Llama(const ModelConfig& config, LayerRange range, const BackboneOptions& options)
      : Backbone(config, range), options_(options) {}

  absl::Status Load(WeightSource& weights);
  int64_t frozen_parameters() const override { return parameters_; }
  int64_t frozen_bytes() const override { return bytes_; }

  torch::Tensor Embed(SiteContext& context) override {
    context.layer = static_cast<int>(config_.num_layers);
    const torch::Tensor ids = torch::tensor(context.batch->tokens, torch::kInt64);
    return sites_->EditHidden(Role::kEmbed, embedding_->Rows(ids), context);
  }

  torch::Tensor Layers(torch::Tensor h, SiteContext& context, KvCache* cache) override {
    const RopeAngles angles = MakeRopeAngles(config_, *context.batch, options_.dtype);
    auto* kv = static_cast<LlamaKvCache*>(cache);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      LayerKvCache* layer_cache = kv == nullptr ? nullptr : &kv->layers[i];
      const bool has_backward = h.requires_grad() || sites_->HasLayer(layer.index);
      if (options_.recompute && cache == nullptr && has_backward) {
        // The recomputation outlives this call, so it brings its own context.
        const SiteContext entry = context;
        h = Recomputed(h, [this, &layer, angles, entry](const torch::Tensor& x) {
          SiteContext again = entry;
          return Forward(layer, x, angles, again, nullptr);
        });
      } else {
        h = Forward(layer, h, angles, context, layer_cache);
      }
    }
    return h;
  }

  torch::Tensor LossSum(const torch::Tensor& h, SiteContext& context) override {
    return HeadLossSum(h, context.batch->target_rows, context.batch->target_ids, head_);
  }
  torch::Tensor TargetLosses(const torch::Tensor& h, SiteContext& context) override {
    return HeadLosses(h, context.batch->target_rows, context.batch->target_ids, head_);
  }
  torch::Tensor Logits(const torch::Tensor& h, const std::vector<int64_t>& rows) override {
    return HeadLogits(h, rows, head_);
  }
  std::unique_ptr<KvCache> NewKvCache() const override {
    return std::make_unique<LlamaKvCache>(static_cast<int>(layers_.size()));
  }

 private:
  torch::Tensor Forward(const Layer& layer, torch::Tensor x, const RopeAngles& angles,
                        SiteContext& context, LayerKvCache* cache) const;
  torch::Tensor Linear(const Layer& layer, Role role, SiteInput x, SiteContext& context) const;
  absl::Status LoadLayer(WeightSource& weights, Layer& layer);
  absl::Status LoadNorm(WeightSource& weights, const std::string& name, torch::Tensor* norm);

  BackboneOptions options_;
  std::vector<Layer> layers_;
  std::shared_ptr<const FrozenWeight> embedding_;
  LossHead head_;
  int64_t parameters_ = 0, bytes_ = 0;
};

torch::Tensor Llama::Linear(const Layer& layer, Role role, SiteInput x,
                            SiteContext& context) const {
  x = sites_->EditInput(role, std::move(x), context);
  return sites_->EditOutput(role, x, layer.at(role).Forward(x.value), context);
}

// One layer, from the residual stream to the residual stream: x (N, D) -> (N, D).
torch::Tensor Llama::Forward(const Layer& layer, torch::Tensor x, const RopeAngles& angles,
                             SiteContext& context, LayerKvCache* cache) const {
  context.layer = layer.index;
  x = sites_->EditHidden(Role::kLayerIn, x, context);

  const SiteInput normed = RmsNorm(x, layer.attention_norm, config_.norm_eps);
  torch::Tensor q = Linear(layer, Role::kAttnQ, normed, context);
  torch::Tensor k = Linear(layer, Role::kAttnK, normed, context);
  torch::Tensor v = Linear(layer, Role::kAttnV, normed, context);
  q = Rope(q, angles, config_.head_dim);
  k = Rope(k, angles, config_.head_dim);
  const AttentionShape shape{config_.num_heads, config_.num_kv_heads, config_.head_dim,
                             config_.sliding_window[static_cast<size_t>(layer.index)]};
  const auto& segments = context.batch->segments;
  const torch::Tensor mixed = cache == nullptr ? Attention(q, k, v, segments, shape)
                                               : cache->Attend(q, k, v, segments, shape);
  const torch::Tensor attended = Linear(layer, Role::kAttnO, {mixed, nullptr}, context);
  x = x + sites_->EditHidden(Role::kAttnOut, attended, context);

  const SiteInput ffn_normed = RmsNorm(x, layer.ffn_norm, config_.norm_eps);
  const torch::Tensor gate = Linear(layer, Role::kFfnGate, ffn_normed, context);
  const torch::Tensor up = Linear(layer, Role::kFfnUp, ffn_normed, context);
  const torch::Tensor down = Linear(layer, Role::kFfnDown, SwiGlu(gate, up), context);
  x = x + sites_->EditHidden(Role::kFfnOut, down, context);
  return sites_->EditHidden(Role::kLayerOut, x, context);
}

absl::Status Llama::LoadNorm(WeightSource& weights, const std::string& name, torch::Tensor* norm) {
  GRAFT_ASSIGN_OR_RETURN(const torch::Tensor stored,
                         weights.Load(name, {config_.hidden_size}, options_.dtype));
  *norm = stored.to(torch::kFloat32).contiguous();
  parameters_ += norm->numel();
  bytes_ += static_cast<int64_t>(norm->nbytes());
  return absl::OkStatus();
}

absl::Status Llama::LoadLayer(WeightSource& weights, Layer& layer) {
  const std::string prefix = LayerName(layer.index);
  GRAFT_RETURN_IF_ERROR(
      LoadNorm(weights, prefix + ".input_layernorm.weight", &layer.attention_norm));
  GRAFT_RETURN_IF_ERROR(
      LoadNorm(weights, prefix + ".post_attention_layernorm.weight", &layer.ffn_norm));
  for (Role role : kLinearRoles) {
    const LinearSpec spec = SpecOf(config_, role);
    const std::string name = absl::StrCat(prefix, ".", spec.module);
    GRAFT_ASSIGN_OR_RETURN(
        torch::Tensor weight,
        weights.Load(name + ".weight", {spec.out_features, spec.in_features}, options_.dtype));
    torch::Tensor bias;
    if (spec.bias) {
      GRAFT_ASSIGN_OR_RETURN(bias,
                             weights.Load(name + ".bias", {spec.out_features}, options_.dtype));
    }
    FrozenLinear& linear = layer.linears[static_cast<size_t>(role)];
    linear = FrozenLinear(MakeFrozenWeight(std::move(weight)), bias);
    parameters_ += linear.parameters();
    bytes_ += linear.bytes();
  }
  return absl::OkStatus();
}

absl::Status Llama::Load(WeightSource& weights) {
  const std::vector<int64_t> table{config_.vocab_size, config_.hidden_size};
  const bool needs_embedding = range_.embed || (range_.head && config_.tie_word_embeddings);
  if (needs_embedding) {
    GRAFT_ASSIGN_OR_RETURN(torch::Tensor weight,
                           weights.Load("model.embed_tokens.weight", table, options_.dtype));
    embedding_ = MakeFrozenWeight(std::move(weight));
    parameters_ += config_.vocab_size * config_.hidden_size;
    bytes_ += embedding_->bytes();
  }
  layers_.resize(static_cast<size_t>(range_.num_layers));
  for (size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].index = range_.first_layer + static_cast<int>(i);
    GRAFT_RETURN_IF_ERROR(LoadLayer(weights, layers_[i]));
  }
  if (!range_.head) return absl::OkStatus();
  GRAFT_RETURN_IF_ERROR(LoadNorm(weights, "model.norm.weight", &head_.norm_weight));
  head_.norm_eps = config_.norm_eps;
  std::shared_ptr<const FrozenWeight> projection = embedding_;
  if (!config_.tie_word_embeddings) {
    GRAFT_ASSIGN_OR_RETURN(torch::Tensor weight,
                           weights.Load("lm_head.weight", table, options_.dtype));
    projection = MakeFrozenWeight(std::move(weight));
    parameters_ += config_.vocab_size * config_.hidden_size;
    bytes_ += projection->bytes();
  }
  head_.projection = FrozenLinear(projection, torch::Tensor());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backbone>> BuildLlama(const ModelConfig& config, LayerRange range,
                                                     WeightSource& weights,
                                                     const BackboneOptions& options) {
  auto model = std::make_unique<Llama>(config, range, options);
  GRAFT_RETURN_IF_ERROR(model->Load(weights));
  return std::unique_ptr<Backbone>(std::move(model));
}

std::vector<SiteSpec> ListLlamaSites(const ModelConfig& config) {
  const int64_t width = config.hidden_size;
  std::vector<SiteSpec> sites{{{static_cast<int>(config.num_layers), Role::kEmbed},
                               "model.embed_tokens",
                               width,
                               width,
                               false}};
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = LayerName(layer);
    for (Role role : kLinearRoles) {
      const LinearSpec spec = SpecOf(config, role);
      sites.push_back({{layer, role},
                       absl::StrCat(prefix, ".", spec.module),
                       spec.in_features,
                       spec.out_features,
                       false});
    }
    sites.push_back({{layer, Role::kLayerIn}, prefix, width, width, false});
    sites.push_back({{layer, Role::kAttnOut}, prefix + ".self_attn.o_proj", width, width, false});
    sites.push_back({{layer, Role::kFfnOut}, prefix + ".mlp.down_proj", width, width, false});
    sites.push_back({{layer, Role::kLayerOut}, prefix, width, width, false});
  }
  return sites;
}

int64_t CountLlamaParameters(const ModelConfig& config) {
  int64_t layer = 2 * config.hidden_size;
  for (Role role : kLinearRoles) {
    const LinearSpec spec = SpecOf(config, role);
    layer += spec.in_features * spec.out_features + (spec.bias ? spec.out_features : 0);
  }
  const int64_t table = config.vocab_size * config.hidden_size;
  return config.num_layers * layer + config.hidden_size +
         table * (config.tie_word_embeddings ? 1 : 2);
}

}  // namespace graft::models
