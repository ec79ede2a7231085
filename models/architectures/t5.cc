#include "models/architectures/t5.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "models/architectures/layer_stack.h"
#include "models/device.h"
#include "models/layers/activation.h"
#include "models/layers/geglu.h"
#include "models/layers/relative_bias.h"

namespace graft::models {
namespace {

bool IsDecoder(const ModelConfig& config, int layer) { return config.is_decoder_layer(layer); }

std::string StackName(bool decoder) { return decoder ? "decoder" : "encoder"; }

std::string LayerName(const ModelConfig& config, int layer) {
  const bool decoder = IsDecoder(config, layer);
  const int64_t number = decoder ? layer - config.encoder_layers : layer;
  return absl::StrCat(StackName(decoder), ".block.", number);
}

// One linear of a layer, as config.json defines it. T5 has no biases.
struct LinearSpec {
  Role role;
  std::string module;  // below the layer
  int64_t out_features, in_features;
};

// Of one layer, in the fixed role order.
std::vector<LinearSpec> LinearsOf(const ModelConfig& c, bool decoder) {
  const int64_t d = c.hidden_size, inner = c.intermediate_size, heads = c.q_width();
  const std::string self = ".layer.0.SelfAttention.", cross = ".layer.1.EncDecAttention.",
                    ffn = absl::StrCat(".layer.", decoder ? 2 : 1, ".DenseReluDense.");
  std::vector<LinearSpec> linears = {{Role::kAttnQ, self + "q", heads, d},
                                     {Role::kAttnK, self + "k", heads, d},
                                     {Role::kAttnV, self + "v", heads, d},
                                     {Role::kAttnO, self + "o", d, heads}};
  if (c.gated_ffn) linears.push_back({Role::kFfnGate, ffn + "wi_0", inner, d});
  linears.push_back({Role::kFfnUp, ffn + (c.gated_ffn ? "wi_1" : "wi"), inner, d});
  linears.push_back({Role::kFfnDown, ffn + "wo", d, inner});
  if (!decoder) return linears;
  linears.push_back({Role::kCrossQ, cross + "q", heads, d});
  linears.push_back({Role::kCrossK, cross + "k", heads, d});
  linears.push_back({Role::kCrossV, cross + "v", heads, d});
  linears.push_back({Role::kCrossO, cross + "o", d, heads});
  return linears;
}

struct Layer {
  Norm attention_norm, cross_norm, ffn_norm;
  std::map<Role, FrozenLinear> linears;
};

// Of one stack: the stored table, and what it gives by head and distance.
struct BiasTable {
  std::shared_ptr<const FrozenWeight> weight;
  std::shared_ptr<const RelativeBias> bias;
};

class T5 : public LayerStack {
 public:
  T5(const ModelConfig& config, LayerRange range, const BackboneOptions& options)
      : LayerStack(config, range, options) {}

  absl::Status Load(WeightSource& weights);

  // Encoder rows, then decoder rows; the hooks of `embed` see the encoder's.
  torch::Tensor Embed(SiteContext& context) override {
    const MicroBatch& batch = *context.batch;
    context.batch = batch.source.get();
    const torch::Tensor source = EmbedTokens(*embedding_, context);
    context.batch = &batch;
    return at::cat({source, embedding_->Rows(IndexTensor(batch.tokens, options_.device))});
  }

  torch::Tensor Layers(torch::Tensor h, SiteContext& context, KvCache* cache) override;

  torch::Tensor LossSum(const torch::Tensor& h, SiteContext& context) override {
    return LayerStack::LossSum(DecoderRows(h, *context.batch), context);
  }
  TargetResults EvaluateTargets(const torch::Tensor& h, SiteContext& context) override {
    return LayerStack::EvaluateTargets(DecoderRows(h, *context.batch), context);
  }

 private:
  static torch::Tensor DecoderRows(const torch::Tensor& h, const MicroBatch& batch) {
    return h.narrow(0, batch.source->num_rows(), batch.num_rows());
  }
  torch::Tensor Forward(const Layer& layer, torch::Tensor x, SiteContext& context,
                        LayerKvCache* cache) const;
  torch::Tensor SelfAttention(const Layer& layer, const torch::Tensor& x, SiteContext& context,
                              LayerKvCache* cache) const;
  torch::Tensor CrossAttention(const Layer& layer, const torch::Tensor& x, SiteContext& context,
                               LayerKvCache* cache) const;
  torch::Tensor FeedForward(const Layer& layer, const torch::Tensor& x, SiteContext& context) const;
  torch::Tensor Linear(const Layer& layer, Role role, SiteInput x, SiteContext& context) const {
    return LayerStack::Linear(layer.linears.at(role), role, std::move(x), context);
  }
  AttentionShape ShapeOf(bool causal, std::shared_ptr<const RelativeBias> bias) const {
    return {config_.num_heads, config_.num_heads, config_.head_dim, /*sliding_window=*/0, causal,
            /*scale=*/1.0f,    std::move(bias)};
  }
  absl::Status LoadNorm(PartLoader& loader, const std::string& name, Norm* norm) const {
    return loader.LoadNorm(name, config_.hidden_size, false, config_.norm_eps, norm);
  }
  absl::Status LoadLayer(PartLoader& loader, int index, Layer* layer) const;
  absl::Status LoadBias(PartLoader& loader, bool decoder, BiasTable* table) const;
  void ReadBias(bool decoder, BiasTable* table) const;
  absl::Status LoadHead(PartLoader& loader);

  // Layers of the range that are the encoder's.
  size_t num_encoder_layers() const {
    return static_cast<size_t>(
        std::clamp<int64_t>(config_.encoder_layers - range_.first_layer, 0, range_.num_layers));
  }

  std::vector<Layer> layers_;
  std::shared_ptr<const FrozenWeight> embedding_;
  BiasTable encoder_bias_, decoder_bias_;
  Norm encoder_norm_;
};

torch::Tensor T5::Layers(torch::Tensor h, SiteContext& context, KvCache* cache) {
  const MicroBatch& batch = *context.batch;
  if (options_.train_weights &&
      cache != nullptr) {  // the tables may have changed since they were read
    if (encoder_bias_.weight != nullptr) ReadBias(false, &encoder_bias_);
    if (decoder_bias_.weight != nullptr) ReadBias(true, &decoder_bias_);
  }
  const LayerBody body = [this](size_t i, torch::Tensor x, SiteContext& at, LayerKvCache* kv) {
    return Forward(layers_[i], std::move(x), at, kv);
  };
  const size_t cut = num_encoder_layers(), end = layers_.size();
  torch::Tensor source = h.narrow(0, 0, batch.source->num_rows());
  torch::Tensor target = DecoderRows(h, batch);
  // The encoder sees a prompt whole, once: it keeps nothing, and has nothing to do while sequences
  // go on.
  if (cut > 0 && source.size(0) > 0) {
    context.batch = batch.source.get();
    source = RunLayers(source, 0, cut, context, nullptr, body);
    context.batch = &batch;
    const int64_t last = config_.encoder_layers - 1;  // scoring may begin behind it or end before
    const bool ran_last = context.first_layer <= last && last < context.end_layer;
    if (ran_last && range_.first_layer + static_cast<int64_t>(cut) == config_.encoder_layers) {
      source = encoder_norm_.Forward(source).value;
    }
  }
  if (cut < end) {
    context.source = source;
    target = RunLayers(target, cut, end, context, cache, body);
    context.source = torch::Tensor();
  }
  return at::cat({source, target});
}

// One layer, from the residual stream to the residual stream: x (N, D) -> (N, D), of the encoder's
// or of the decoder's rows.
torch::Tensor T5::Forward(const Layer& layer, torch::Tensor x, SiteContext& context,
                          LayerKvCache* cache) const {
  x = sites_->EditHidden(Role::kLayerIn, x, context);
  x = x + SelfAttention(layer, x, context, cache);
  if (IsDecoder(config_, context.layer)) x = x + CrossAttention(layer, x, context, cache);
  x = x + FeedForward(layer, x, context);
  return sites_->EditHidden(Role::kLayerOut, x, context);
}

torch::Tensor T5::SelfAttention(const Layer& layer, const torch::Tensor& x, SiteContext& context,
                                LayerKvCache* cache) const {
  const bool decoder = IsDecoder(config_, context.layer);
  const SiteInput normed = layer.attention_norm.Forward(x);
  const torch::Tensor q = Linear(layer, Role::kAttnQ, normed, context);
  const torch::Tensor k = Linear(layer, Role::kAttnK, normed, context);
  const torch::Tensor v = Linear(layer, Role::kAttnV, normed, context);
  const BiasTable& table = decoder ? decoder_bias_ : encoder_bias_;
  const torch::Tensor mixed =
      options_.train_weights && cache == nullptr
          ? AttentionWithTrainedBias(q, k, v, context.batch->segments,
                                     {config_.num_heads, !decoder, config_.relative_max_distance},
                                     table.weight->Leaf())
          : Attend(q, k, v, ShapeOf(decoder, table.bias), context, cache);
  const torch::Tensor out = Linear(layer, Role::kAttnO, {mixed, nullptr}, context);
  return sites_->EditHidden(Role::kAttnOut, out, context);
}

torch::Tensor T5::CrossAttention(const Layer& layer, const torch::Tensor& x, SiteContext& context,
                                 LayerKvCache* cache) const {
  const MicroBatch& batch = *context.batch;
  const SiteInput normed = layer.cross_norm.Forward(x);
  const torch::Tensor q = Linear(layer, Role::kCrossQ, normed, context);
  // Keys and values have the encoder's rows, and so have their hooks.
  const SiteInput source{context.source, nullptr};
  context.batch = batch.source.get();
  const torch::Tensor k = Linear(layer, Role::kCrossK, source, context);
  const torch::Tensor v = Linear(layer, Role::kCrossV, source, context);
  context.batch = &batch;
  const AttentionShape shape = ShapeOf(/*causal=*/false, nullptr);
  const auto& own = batch.segments;
  const auto& theirs = batch.source->segments;
  const torch::Tensor mixed = cache == nullptr ? models::CrossAttention(q, k, v, own, theirs, shape)
                                               : cache->AttendSource(q, k, v, own, theirs, shape);
  return Linear(layer, Role::kCrossO, {mixed, nullptr}, context);
}

torch::Tensor T5::FeedForward(const Layer& layer, const torch::Tensor& x,
                              SiteContext& context) const {
  const SiteInput normed = layer.ffn_norm.Forward(x);
  SiteInput inner;
  if (config_.gated_ffn) {
    const torch::Tensor gate = Linear(layer, Role::kFfnGate, normed, context);
    inner = GeGlu(gate, Linear(layer, Role::kFfnUp, normed, context));
  } else {
    inner = Activation(Linear(layer, Role::kFfnUp, normed, context), ActivationKind::kRelu);
  }
  const torch::Tensor down = Linear(layer, Role::kFfnDown, inner, context);
  return sites_->EditHidden(Role::kFfnOut, down, context);
}

absl::Status T5::LoadLayer(PartLoader& loader, int index, Layer* layer) const {
  const std::string prefix = LayerName(config_, index);
  const bool decoder = IsDecoder(config_, index);
  GRAFT_RETURN_IF_ERROR(LoadNorm(loader, prefix + ".layer.0.layer_norm", &layer->attention_norm));
  if (decoder) {
    GRAFT_RETURN_IF_ERROR(LoadNorm(loader, prefix + ".layer.1.layer_norm", &layer->cross_norm));
  }
  GRAFT_RETURN_IF_ERROR(LoadNorm(
      loader, absl::StrCat(prefix, ".layer.", decoder ? 2 : 1, ".layer_norm"), &layer->ffn_norm));
  for (const LinearSpec& spec : LinearsOf(config_, decoder)) {
    GRAFT_RETURN_IF_ERROR(loader.LoadLinear(prefix + spec.module, spec.out_features,
                                            spec.in_features, /*bias=*/false,
                                            &layer->linears[spec.role]));
  }
  return absl::OkStatus();
}

// A stack's first layer has the table; each part that runs one of its layers needs it.
absl::Status T5::LoadBias(PartLoader& loader, bool decoder, BiasTable* table) const {
  const std::string name =
      StackName(decoder) + ".block.0.layer.0.SelfAttention.relative_attention_bias";
  GRAFT_RETURN_IF_ERROR(loader.LoadTable(name, config_.relative_buckets, config_.num_heads,
                                         FrozenUse::kProductsAndLookup, &table->weight));
  ReadBias(decoder, table);
  const torch::Tensor& on_device = table->bias->table;
  if (on_device.defined() && !options_.train_weights)
    loader.NoteDerived(name + ".weight", on_device);
  return absl::OkStatus();
}

void T5::ReadBias(bool decoder, BiasTable* table) const {
  at::NoGradGuard no_grad;
  const torch::Tensor rows = table->weight->Rows(torch::arange(
      config_.relative_buckets, torch::TensorOptions(torch::kInt64).device(options_.device)));
  table->bias = MakeRelativeBias(rows, /*bidirectional=*/!decoder, config_.relative_max_distance);
}

absl::Status T5::LoadHead(PartLoader& loader) {
  GRAFT_RETURN_IF_ERROR(LoadNorm(loader, "decoder.final_layer_norm", &head_.norm));
  if (config_.scale_decoder_outputs) {
    // The head is linear: scaled norm weights are scaled outputs.
    const double scale = 1.0 / std::sqrt(static_cast<double>(config_.hidden_size));
    if (options_.train_weights) {
      head_.norm.gain = scale;
    } else {
      head_.norm.weight = head_.norm.weight * scale;
      loader.NoteDerived("decoder.final_layer_norm.weight", head_.norm.weight);
    }
  }
  return LoadProjection(loader, "lm_head", embedding_);
}

absl::Status T5::Load(WeightSource& weights) {
  PartLoader loader(weights, options_);
  if (NeedsEmbedding()) {
    GRAFT_RETURN_IF_ERROR(loader.LoadTable("shared", config_.vocab_size, config_.hidden_size,
                                           EmbeddingUse(), &embedding_));
  }
  layers_.resize(static_cast<size_t>(range_.num_layers));
  GRAFT_RETURN_IF_ERROR(LoadLayers(
      loader, [&](int index, size_t i) { return LoadLayer(loader, index, &layers_[i]); }));
  const size_t encoder_layers = num_encoder_layers();
  if (encoder_layers > 0) GRAFT_RETURN_IF_ERROR(LoadBias(loader, false, &encoder_bias_));
  if (encoder_layers < layers_.size()) {
    GRAFT_RETURN_IF_ERROR(LoadBias(loader, true, &decoder_bias_));
  }
  if (encoder_layers > 0 && range_.end_layer() >= config_.encoder_layers) {
    GRAFT_RETURN_IF_ERROR(LoadNorm(loader, "encoder.final_layer_norm", &encoder_norm_));
  }
  if (range_.head) GRAFT_RETURN_IF_ERROR(LoadHead(loader));
  TakeCounts(loader);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backbone>> BuildT5(const ModelConfig& config, LayerRange range,
                                                  WeightSource& weights,
                                                  const BackboneOptions& options) {
  auto model = std::make_unique<T5>(config, range, options);
  GRAFT_RETURN_IF_ERROR(model->Load(weights));
  return std::unique_ptr<Backbone>(std::move(model));
}

std::vector<SiteSpec> ListT5Sites(const ModelConfig& config) {
  const int64_t width = config.hidden_size;
  std::vector<SiteSpec> sites{
      {{static_cast<int>(config.num_layers), Role::kEmbed}, "shared", width, width}};
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = LayerName(config, layer);
    std::vector<SiteSpec> linears;
    for (const LinearSpec& spec : LinearsOf(config, IsDecoder(config, layer))) {
      linears.push_back(
          {{layer, spec.role}, prefix + spec.module, spec.in_features, spec.out_features});
    }
    AppendLayerSites(config, layer, prefix, std::move(linears), &sites);
  }
  return sites;
}

}  // namespace graft::models
