#include "models/architectures/llama.h"

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "models/architectures/layer_stack.h"
#include "models/layers/rope.h"
#include "models/layers/swiglu.h"

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
  Norm attention_norm, ffn_norm;
  FrozenLinear linears[7];
  const FrozenLinear& at(Role role) const { return linears[static_cast<size_t>(role)]; }
};

class Llama : public LayerStack {
 public:
  Llama(const ModelConfig& config, LayerRange range, const BackboneOptions& options)
      : LayerStack(config, range, options) {}

  absl::Status Load(WeightSource& weights);

  torch::Tensor Embed(SiteContext& context) override { return EmbedTokens(*embedding_, context); }

  torch::Tensor Layers(torch::Tensor h, SiteContext& context, KvCache* cache) override {
    const RopeAngles angles =
        context.decoding != nullptr
            ? AnglesOfStep(*context.decoding, cache->room().rows)
            : MakeRopeAngles(config_, *context.batch, options_.dtype, options_.device);
    return RunLayers(std::move(h), context, cache,
                     [this, angles](size_t i, torch::Tensor x, SiteContext& at, LayerKvCache* kv) {
                       return Forward(layers_[i], std::move(x), angles, at, kv);
                     });
  }

 private:
  torch::Tensor Forward(const Layer& layer, torch::Tensor x, const RopeAngles& angles,
                        SiteContext& context, LayerKvCache* cache) const;
  torch::Tensor Linear(const Layer& layer, Role role, SiteInput x, SiteContext& context) const {
    return LayerStack::Linear(layer.at(role), role, std::move(x), context);
  }
  // Looked up in a table of all positions below `rows`, made in the first step that needs it.
  RopeAngles AnglesOfStep(const DecodingInputs& decoding, int64_t rows) {
    RopeAngles& table = tables_[rows];
    if (!table.cosine.defined())
      table = MakeRopeTable(config_, rows, options_.dtype, options_.device);
    return {table.cosine.index_select(0, decoding.positions),
            table.sine.index_select(0, decoding.positions)};
  }
  absl::Status LoadLayer(PartLoader& loader, int index, Layer* layer);

  std::map<int64_t, RopeAngles> tables_;  // by rows; recorded steps go on reading theirs
  std::vector<Layer> layers_;
  std::shared_ptr<const FrozenWeight> embedding_;
};

// One layer, from the residual stream to the residual stream: x (N, D) -> (N, D).
torch::Tensor Llama::Forward(const Layer& layer, torch::Tensor x, const RopeAngles& angles,
                             SiteContext& context, LayerKvCache* cache) const {
  x = sites_->EditHidden(Role::kLayerIn, x, context);

  const SiteInput normed = layer.attention_norm.Forward(x);
  torch::Tensor q = Linear(layer, Role::kAttnQ, normed, context);
  torch::Tensor k = Linear(layer, Role::kAttnK, normed, context);
  torch::Tensor v = Linear(layer, Role::kAttnV, normed, context);
  q = Rope(q, angles, config_.head_dim);
  k = Rope(k, angles, config_.head_dim);
  const AttentionShape shape{config_.num_heads, config_.num_kv_heads, config_.head_dim,
                             config_.sliding_window[static_cast<size_t>(context.layer)]};
  const torch::Tensor mixed = Attend(q, k, v, shape, context, cache);
  const torch::Tensor attended = Linear(layer, Role::kAttnO, {mixed, nullptr}, context);
  x = x + sites_->EditHidden(Role::kAttnOut, attended, context);

  const SiteInput ffn_normed = layer.ffn_norm.Forward(x);
  const torch::Tensor gate = Linear(layer, Role::kFfnGate, ffn_normed, context);
  const torch::Tensor up = Linear(layer, Role::kFfnUp, ffn_normed, context);
  const torch::Tensor down = Linear(layer, Role::kFfnDown, SwiGlu(gate, up), context);
  x = x + sites_->EditHidden(Role::kFfnOut, down, context);
  return sites_->EditHidden(Role::kLayerOut, x, context);
}

absl::Status Llama::LoadLayer(PartLoader& loader, int index, Layer* layer) {
  const std::string prefix = LayerName(index);
  GRAFT_RETURN_IF_ERROR(loader.LoadNorm(prefix + ".input_layernorm", config_.hidden_size, false,
                                        config_.norm_eps, &layer->attention_norm));
  GRAFT_RETURN_IF_ERROR(loader.LoadNorm(prefix + ".post_attention_layernorm", config_.hidden_size,
                                        false, config_.norm_eps, &layer->ffn_norm));
  for (Role role : kLinearRoles) {
    const LinearSpec spec = SpecOf(config_, role);
    GRAFT_RETURN_IF_ERROR(loader.LoadLinear(absl::StrCat(prefix, ".", spec.module),
                                            spec.out_features, spec.in_features, spec.bias,
                                            &layer->linears[static_cast<size_t>(role)]));
  }
  return absl::OkStatus();
}

absl::Status Llama::Load(WeightSource& weights) {
  PartLoader loader(weights, options_);
  if (NeedsEmbedding()) {
    GRAFT_RETURN_IF_ERROR(loader.LoadTable("model.embed_tokens", config_.vocab_size,
                                           config_.hidden_size, EmbeddingUse(), &embedding_,
                                           config_.pad_token_id.value_or(-1)));
  }
  layers_.resize(static_cast<size_t>(range_.num_layers));
  GRAFT_RETURN_IF_ERROR(LoadLayers(
      loader, [&](int index, size_t i) { return LoadLayer(loader, index, &layers_[i]); }));
  if (range_.head) {
    GRAFT_RETURN_IF_ERROR(
        loader.LoadNorm("model.norm", config_.hidden_size, false, config_.norm_eps, &head_.norm));
    GRAFT_RETURN_IF_ERROR(LoadProjection(loader, "lm_head", embedding_));
  }
  TakeCounts(loader);
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
  std::vector<SiteSpec> sites{
      {{static_cast<int>(config.num_layers), Role::kEmbed}, "model.embed_tokens", width, width}};
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = LayerName(layer);
    std::vector<SiteSpec> linears;
    for (Role role : kLinearRoles) {
      const LinearSpec spec = SpecOf(config, role);
      linears.push_back({{layer, role},
                         absl::StrCat(prefix, ".", spec.module),
                         spec.in_features,
                         spec.out_features});
    }
    AppendLayerSites(config, layer, prefix, std::move(linears), &sites);
  }
  return sites;
}

}  // namespace graft::models
