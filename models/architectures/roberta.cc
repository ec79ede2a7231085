#include "models/architectures/roberta.h"

#include <string>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "models/architectures/layer_stack.h"
#include "models/device.h"
#include "models/layers/activation.h"

namespace graft::models {
namespace {

std::string LayerName(int layer) { return absl::StrCat("roberta.encoder.layer.", layer); }

struct Layer {
  FrozenLinear q, k, v, o, up, down;
  Norm attention_norm, ffn_norm;
};

class Roberta : public LayerStack {
 public:
  Roberta(const ModelConfig& config, LayerRange range, const BackboneOptions& options)
      : LayerStack(config, range, options), activation_(ActivationOf(config.activation)) {}

  absl::Status Load(WeightSource& weights);

  torch::Tensor Embed(SiteContext& context) override {
    const torch::Tensor words = EmbedTokens(*words_, context);
    const torch::Tensor rows =
        IndexTensor(context.batch->positions, options_.device) + config_.position_offset;
    const torch::Tensor first_type = token_types_->Rows(IndexTensor({0}, options_.device));
    return embedding_norm_.Forward(words + first_type + positions_->Rows(rows)).value;
  }

  torch::Tensor Layers(torch::Tensor h, SiteContext& context, KvCache* cache) override {
    return RunLayers(std::move(h), context, cache,
                     [this](size_t i, torch::Tensor x, SiteContext& at, LayerKvCache*) {
                       return Forward(layers_[i], std::move(x), at);
                     });
  }

 private:
  // `<s>` of every sample, behind the rows of a soft prompt, or the first of those rows
  // (methods.md 7, read_at: text | first).
  torch::Tensor Pool(const torch::Tensor& h, const MicroBatch& batch) const override {
    std::vector<int64_t> rows;
    for (const Segment& segment : batch.segments) {
      rows.push_back(options_.pool_first_row ? segment.begin : segment.prompt_begin());
    }
    return h.index_select(0, IndexTensor(rows, h.device()));
  }
  torch::Tensor Forward(const Layer& layer, torch::Tensor x, SiteContext& context) const;
  absl::Status LoadEmbeddings(PartLoader& loader);
  absl::Status LoadLayer(PartLoader& loader, int index, Layer* layer);

  const ActivationKind activation_;
  std::vector<Layer> layers_;
  std::shared_ptr<const FrozenWeight> words_, positions_, token_types_;
  Norm embedding_norm_;
};

// One layer: x (N, D), which the norm before has made, -> (N, D).
torch::Tensor Roberta::Forward(const Layer& layer, torch::Tensor x, SiteContext& context) const {
  x = sites_->EditHidden(Role::kLayerIn, x, context);

  const SiteInput input{x, nullptr};
  const torch::Tensor q = Linear(layer.q, Role::kAttnQ, input, context);
  const torch::Tensor k = Linear(layer.k, Role::kAttnK, input, context);
  const torch::Tensor v = Linear(layer.v, Role::kAttnV, input, context);
  const AttentionShape shape{config_.num_heads, config_.num_heads, config_.head_dim,
                             /*sliding_window=*/0, /*causal=*/false};
  const torch::Tensor mixed = Attend(q, k, v, shape, context, nullptr);
  const torch::Tensor attended = Linear(layer.o, Role::kAttnO, {mixed, nullptr}, context);
  const SiteInput middle =
      layer.attention_norm.Forward(sites_->EditHidden(Role::kAttnOut, attended, context) + x);

  const torch::Tensor up = Linear(layer.up, Role::kFfnUp, middle, context);
  const torch::Tensor down =
      Linear(layer.down, Role::kFfnDown, Activation(up, activation_), context);
  const SiteInput out =
      layer.ffn_norm.Forward(sites_->EditHidden(Role::kFfnOut, down, context) + middle.value);
  return sites_->EditHidden(Role::kLayerOut, out.value, context);
}

absl::Status Roberta::LoadEmbeddings(PartLoader& loader) {
  const int64_t width = config_.hidden_size;
  const std::string prefix = "roberta.embeddings.";
  GRAFT_RETURN_IF_ERROR(loader.LoadTable(prefix + "word_embeddings", config_.vocab_size, width,
                                         FrozenUse::kProductsAndLookup, &words_,
                                         /*padding_row=*/config_.position_offset - 1));
  GRAFT_RETURN_IF_ERROR(loader.LoadTable(prefix + "position_embeddings", config_.position_rows,
                                         width, FrozenUse::kProductsAndLookup, &positions_));
  GRAFT_RETURN_IF_ERROR(loader.LoadTable(prefix + "token_type_embeddings", config_.token_types,
                                         width, FrozenUse::kProductsAndLookup, &token_types_));
  return loader.LoadNorm(prefix + "LayerNorm", width, true, config_.norm_eps, &embedding_norm_);
}

absl::Status Roberta::LoadLayer(PartLoader& loader, int index, Layer* layer) {
  const std::string prefix = LayerName(index);
  const int64_t width = config_.hidden_size, inner = config_.intermediate_size;
  const auto linear = [&](const char* name, int64_t out, int64_t in, FrozenLinear* into) {
    return loader.LoadLinear(prefix + name, out, in, /*bias=*/true, into);
  };
  GRAFT_RETURN_IF_ERROR(linear(".attention.self.query", width, width, &layer->q));
  GRAFT_RETURN_IF_ERROR(linear(".attention.self.key", width, width, &layer->k));
  GRAFT_RETURN_IF_ERROR(linear(".attention.self.value", width, width, &layer->v));
  GRAFT_RETURN_IF_ERROR(linear(".attention.output.dense", width, width, &layer->o));
  GRAFT_RETURN_IF_ERROR(loader.LoadNorm(prefix + ".attention.output.LayerNorm", width, true,
                                        config_.norm_eps, &layer->attention_norm));
  GRAFT_RETURN_IF_ERROR(linear(".intermediate.dense", inner, width, &layer->up));
  GRAFT_RETURN_IF_ERROR(linear(".output.dense", width, inner, &layer->down));
  return loader.LoadNorm(prefix + ".output.LayerNorm", width, true, config_.norm_eps,
                         &layer->ffn_norm);
}

absl::Status Roberta::Load(WeightSource& weights) {
  PartLoader loader(weights, options_);
  if (range_.embed) GRAFT_RETURN_IF_ERROR(LoadEmbeddings(loader));
  layers_.resize(static_cast<size_t>(range_.num_layers));
  GRAFT_RETURN_IF_ERROR(LoadLayers(
      loader, [&](int index, size_t i) { return LoadLayer(loader, index, &layers_[i]); }));
  TakeCounts(loader);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backbone>> BuildRoberta(const ModelConfig& config, LayerRange range,
                                                       WeightSource& weights,
                                                       const BackboneOptions& options) {
  auto model = std::make_unique<Roberta>(config, range, options);
  GRAFT_RETURN_IF_ERROR(model->Load(weights));
  return std::unique_ptr<Backbone>(std::move(model));
}

std::vector<SiteSpec> ListRobertaSites(const ModelConfig& config) {
  const int64_t d = config.hidden_size, f = config.intermediate_size;
  std::vector<SiteSpec> sites{{{static_cast<int>(config.num_layers), Role::kEmbed},
                               "roberta.embeddings.word_embeddings",
                               d,
                               d}};
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = LayerName(layer);
    const auto linear = [&](Role role, const char* module, int64_t in, int64_t out) {
      return SiteSpec{{layer, role}, prefix + module, in, out};
    };
    AppendLayerSites(config, layer, prefix,
                     {linear(Role::kAttnQ, ".attention.self.query", d, d),
                      linear(Role::kAttnK, ".attention.self.key", d, d),
                      linear(Role::kAttnV, ".attention.self.value", d, d),
                      linear(Role::kAttnO, ".attention.output.dense", d, d),
                      linear(Role::kFfnUp, ".intermediate.dense", d, f),
                      linear(Role::kFfnDown, ".output.dense", f, d)},
                     &sites);
  }
  return sites;
}

}  // namespace graft::models
