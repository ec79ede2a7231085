#include "models/architectures/gpt2.h"

#include <string>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "models/architectures/layer_stack.h"
#include "models/device.h"
#include "models/layers/activation.h"

namespace graft::models {
namespace {

std::string LayerName(int layer) { return absl::StrCat("transformer.h.", layer); }

struct Layer {
  Norm attention_norm, ffn_norm;
  FrozenLinear q, k, v, o, up, down;
};

class Gpt2 : public LayerStack {
 public:
  Gpt2(const ModelConfig& config, LayerRange range, const BackboneOptions& options)
      : LayerStack(config, range, options), activation_(ActivationOf(config.activation)) {}

  absl::Status Load(WeightSource& weights);

  torch::Tensor Embed(SiteContext& context) override {
    const torch::Tensor words = EmbedTokens(*embedding_, context);
    if (context.decoding != nullptr) return words + positions_->Rows(context.decoding->positions);
    return words + positions_->Rows(IndexTensor(context.batch->positions, options_.device));
  }

  torch::Tensor Layers(torch::Tensor h, SiteContext& context, KvCache* cache) override {
    return RunLayers(std::move(h), context, cache,
                     [this](size_t i, torch::Tensor x, SiteContext& at, LayerKvCache* kv) {
                       return Forward(layers_[i], std::move(x), at, kv);
                     });
  }

 private:
  torch::Tensor Forward(const Layer& layer, torch::Tensor x, SiteContext& context,
                        LayerKvCache* cache) const;
  absl::Status LoadLayer(PartLoader& loader, int index, Layer* layer);

  const ActivationKind activation_;
  std::vector<Layer> layers_;
  std::shared_ptr<const FrozenWeight> embedding_, positions_;
};

// One layer, from the residual stream to the residual stream: x (N, D) -> (N, D).
torch::Tensor Gpt2::Forward(const Layer& layer, torch::Tensor x, SiteContext& context,
                            LayerKvCache* cache) const {
  x = sites_->EditHidden(Role::kLayerIn, x, context);

  const SiteInput normed = layer.attention_norm.Forward(x);
  const torch::Tensor q = Linear(layer.q, Role::kAttnQ, normed, context);
  const torch::Tensor k = Linear(layer.k, Role::kAttnK, normed, context);
  const torch::Tensor v = Linear(layer.v, Role::kAttnV, normed, context);
  const AttentionShape shape{config_.num_heads, config_.num_heads, config_.head_dim};
  const torch::Tensor mixed = Attend(q, k, v, shape, context, cache);
  const torch::Tensor attended = Linear(layer.o, Role::kAttnO, {mixed, nullptr}, context);
  x = x + sites_->EditHidden(Role::kAttnOut, attended, context);

  const SiteInput ffn_normed = layer.ffn_norm.Forward(x);
  const torch::Tensor up = Linear(layer.up, Role::kFfnUp, ffn_normed, context);
  const torch::Tensor down =
      Linear(layer.down, Role::kFfnDown, Activation(up, activation_), context);
  x = x + sites_->EditHidden(Role::kFfnOut, down, context);
  return sites_->EditHidden(Role::kLayerOut, x, context);
}

absl::Status Gpt2::LoadLayer(PartLoader& loader, int index, Layer* layer) {
  const std::string prefix = LayerName(index);
  const int64_t width = config_.hidden_size, inner = config_.intermediate_size;
  GRAFT_RETURN_IF_ERROR(
      loader.LoadNorm(prefix + ".ln_1", width, true, config_.norm_eps, &layer->attention_norm));
  GRAFT_RETURN_IF_ERROR(loader.LoadConv1D(prefix + ".attn.c_attn", 3 * width, width,
                                          {&layer->q, &layer->k, &layer->v}));
  GRAFT_RETURN_IF_ERROR(loader.LoadConv1D(prefix + ".attn.c_proj", width, width, {&layer->o}));
  GRAFT_RETURN_IF_ERROR(
      loader.LoadNorm(prefix + ".ln_2", width, true, config_.norm_eps, &layer->ffn_norm));
  GRAFT_RETURN_IF_ERROR(loader.LoadConv1D(prefix + ".mlp.c_fc", inner, width, {&layer->up}));
  return loader.LoadConv1D(prefix + ".mlp.c_proj", width, inner, {&layer->down});
}

absl::Status Gpt2::Load(WeightSource& weights) {
  PartLoader loader(weights, options_);
  const int64_t width = config_.hidden_size;
  if (NeedsEmbedding()) {
    GRAFT_RETURN_IF_ERROR(loader.LoadTable("transformer.wte", config_.vocab_size, width,
                                           EmbeddingUse(), &embedding_));
  }
  if (range_.embed) {
    GRAFT_RETURN_IF_ERROR(loader.LoadTable("transformer.wpe", config_.position_rows, width,
                                           FrozenUse::kProductsAndLookup, &positions_));
  }
  layers_.resize(static_cast<size_t>(range_.num_layers));
  GRAFT_RETURN_IF_ERROR(LoadLayers(
      loader, [&](int index, size_t i) { return LoadLayer(loader, index, &layers_[i]); }));
  if (range_.head) {
    GRAFT_RETURN_IF_ERROR(
        loader.LoadNorm("transformer.ln_f", width, true, config_.norm_eps, &head_.norm));
    GRAFT_RETURN_IF_ERROR(LoadProjection(loader, "lm_head", embedding_));
  }
  TakeCounts(loader);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backbone>> BuildGpt2(const ModelConfig& config, LayerRange range,
                                                    WeightSource& weights,
                                                    const BackboneOptions& options) {
  auto model = std::make_unique<Gpt2>(config, range, options);
  GRAFT_RETURN_IF_ERROR(model->Load(weights));
  return std::unique_ptr<Backbone>(std::move(model));
}

std::vector<SiteSpec> ListGpt2Sites(const ModelConfig& config) {
  const int64_t d = config.hidden_size, f = config.intermediate_size;
  std::vector<SiteSpec> sites{
      {{static_cast<int>(config.num_layers), Role::kEmbed}, "transformer.wte", d, d}};
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = LayerName(layer);
    const auto conv = [&](Role role, const char* module, int64_t in, int64_t out) {
      return SiteSpec{{layer, role}, prefix + module, in, out, /*fan_in_fan_out=*/true};
    };
    const auto fused = [&](Role role, int64_t offset) {
      SiteSpec site = conv(role, ".attn.c_attn", d, d);
      site.fused_features = 3 * d;
      site.fused_offset = offset;
      return site;
    };
    AppendLayerSites(
        config, layer, prefix,
        {fused(Role::kAttnQ, 0), fused(Role::kAttnK, d), fused(Role::kAttnV, 2 * d),
         conv(Role::kAttnO, ".attn.c_proj", d, d), conv(Role::kFfnUp, ".mlp.c_fc", d, f),
         conv(Role::kFfnDown, ".mlp.c_proj", f, d)},
        &sites);
  }
  return sites;
}

}  // namespace graft::models
