#include "models/architectures/t5.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "models/architectures/layer_stack.h"
#include "models/layers/gated_activation.h"
#include "models/layers/relative_bias.h"

namespace graft::models {
namespace {

// The block of a layer: "encoder.block.3", "decoder.block.0".
std::string LayerName(const ModelConfig& config, int layer) {
  const bool decoder = config.is_decoder_layer(layer);
  return absl::StrCat(decoder ? "decoder" : "encoder", ".block.",
                      decoder ? layer - config.encoder_layers : layer);
}

std::string FeedForwardName(const ModelConfig& config, int layer) {
  return absl::StrCat(LayerName(config, layer), ".layer.", config.is_decoder_layer(layer) ? 2 : 1);
}

struct AttentionPart {
  Norm norm;
  FrozenLinear q, k, v, o;
};

struct Layer {
  AttentionPart self, cross;  // cross: decoder only
  Norm ffn_norm;
  FrozenLinear gate, up, down;  // gate: v1.1 only
};

// (rows above `first`, rows from it on) of a hidden state.
std::pair<torch::Tensor, torch::Tensor> Split(const torch::Tensor& h, int64_t first) {
  return {h.narrow(0, 0, first), h.narrow(0, first, h.size(0) - first)};
}

class T5 : public LayerStack {
 public:
  T5(const ModelConfig& config, LayerRange range, const BackboneOptions& options)
      : LayerStack(config, range, options), activation_(ActivationOf(config.activation)) {}

  absl::Status Load(WeightSource& weights);
  torch::Tensor Embed(SiteContext& context) override;
  torch::Tensor Layers(torch::Tensor h, SiteContext& context, KvCache* cache) override;

 private:
  // Of one micro-batch, shared by the layers of a stack; undefined where the range has none.
  struct Biases {
    torch::Tensor encoder, decoder;  // (heads, 2 reach + 1)
  };
  Biases BiasesFor(const MicroBatch& batch) const;
  torch::Tensor EncoderLayer(const Layer& layer, torch::Tensor x, const torch::Tensor& bias,
                             SiteContext& context) const;
  torch::Tensor DecoderLayer(const Layer& layer, torch::Tensor x, const torch::Tensor& bias,
                             SiteContext& context, LayerKvCache* cache) const;
  torch::Tensor SelfAttention(const Layer& layer, const torch::Tensor& x, const torch::Tensor& bias,
                              SiteContext& context, LayerKvCache* cache) const;
  torch::Tensor SourceAttention(const Layer& layer, const torch::Tensor& x, SiteContext& context,
                                LayerKvCache* cache) const;
  torch::Tensor FeedForward(const Layer& layer, const torch::Tensor& x, SiteContext& context) const;
  torch::Tensor OfSource(const FrozenLinear& linear, Role role, SiteContext& context) const;
  AttentionShape Shape(bool causal) const {
    return {config_.num_heads, config_.num_heads, config_.head_dim, /*sliding_window=*/0, causal,
            /*score_scale=*/1.0f};
  }
  absl::Status LoadAttention(PartLoader& loader, const std::string& prefix, const char* module,
                             AttentionPart* part);
  absl::Status LoadLayer(PartLoader& loader, int index, Layer* layer);
  absl::Status LoadStackParts(PartLoader& loader, WeightSource& weights);

  const ActivationKind activation_;
  std::vector<Layer> layers_;
  std::shared_ptr<const FrozenWeight> embedding_;
  torch::Tensor encoder_table_, decoder_table_;  // (buckets, heads), of the stacks in the range
  Norm encoder_norm_;                            // where the encoder's last layer is
};

torch::Tensor T5::Embed(SiteContext& context) {
  const torch::Tensor source = EmbedTokens(*embedding_, context);
  if (context.batch->decoder == nullptr) return source;
  const torch::Tensor ids = torch::tensor(context.batch->decoder->tokens, torch::kInt64);
  return at::cat({source, embedding_->Rows(ids)});
}

T5::Biases T5::BiasesFor(const MicroBatch& batch) const {
  const auto bias = [&](const torch::Tensor& table, const MicroBatch& part, bool both_directions) {
    const auto last = std::max_element(part.positions.begin(), part.positions.end());
    if (!table.defined() || last == part.positions.end()) return torch::Tensor();
    return RelativeBias(table, *last,
                        {config_.relative_buckets, config_.relative_distance, both_directions});
  };
  return {bias(encoder_table_, batch, true), bias(decoder_table_, *batch.decoder, false)};
}

torch::Tensor T5::Layers(torch::Tensor h, SiteContext& context, KvCache* cache) {
  const Biases biases = BiasesFor(*context.batch);
  return RunLayers(
      std::move(h), context, cache,
      [this, biases](size_t i, const torch::Tensor& x, SiteContext& at, LayerKvCache* layer_cache) {
        auto [source, target] = Split(x, at.batch->own_rows());
        if (!config_.is_decoder_layer(at.layer)) {
          // While decoding goes on there is nothing left to encode.
          if (source.size(0) == 0) return x;
          return at::cat({EncoderLayer(layers_[i], source, biases.encoder, at), target});
        }
        SiteContext decoding = at;
        decoding.source_batch = at.batch;
        decoding.source = source;
        decoding.batch = at.batch->decoder.get();
        return at::cat(
            {source, DecoderLayer(layers_[i], target, biases.decoder, decoding, layer_cache)});
      });
}

// One layer of the encoder: x (rows of the source, D) -> the same shape.
torch::Tensor T5::EncoderLayer(const Layer& layer, torch::Tensor x, const torch::Tensor& bias,
                               SiteContext& context) const {
  x = sites_->EditHidden(Role::kLayerIn, x, context);
  x = x + SelfAttention(layer, x, bias, context, nullptr);
  x = x + FeedForward(layer, x, context);
  x = sites_->EditHidden(Role::kLayerOut, x, context);
  return context.layer + 1 == config_.encoder_layers ? encoder_norm_.Forward(x).value : x;
}

// One layer of the decoder: x (rows of the target, D) -> the same shape.
torch::Tensor T5::DecoderLayer(const Layer& layer, torch::Tensor x, const torch::Tensor& bias,
                               SiteContext& context, LayerKvCache* cache) const {
  x = sites_->EditHidden(Role::kLayerIn, x, context);
  x = x + SelfAttention(layer, x, bias, context, cache);
  x = x + SourceAttention(layer, x, context, cache);
  x = x + FeedForward(layer, x, context);
  return sites_->EditHidden(Role::kLayerOut, x, context);
}

torch::Tensor T5::SelfAttention(const Layer& layer, const torch::Tensor& x,
                                const torch::Tensor& bias, SiteContext& context,
                                LayerKvCache* cache) const {
  const SiteInput normed = layer.self.norm.Forward(x);
  const torch::Tensor q = Linear(layer.self.q, Role::kAttnQ, normed, context);
  const torch::Tensor k = Linear(layer.self.k, Role::kAttnK, normed, context);
  const torch::Tensor v = Linear(layer.self.v, Role::kAttnV, normed, context);
  const AttentionShape shape = Shape(/*causal=*/config_.is_decoder_layer(context.layer));
  const std::vector<Segment>& segments = context.batch->segments;
  const torch::Tensor mixed = cache == nullptr
                                  ? BiasedAttention(q, k, v, bias, segments, shape)
                                  : cache->Attend(q, k, v, segments, shape, bias);
  return sites_->EditHidden(
      Role::kAttnOut, Linear(layer.self.o, Role::kAttnO, {mixed, nullptr}, context), context);
}

torch::Tensor T5::SourceAttention(const Layer& layer, const torch::Tensor& x, SiteContext& context,
                                  LayerKvCache* cache) const {
  const SiteInput normed = layer.cross.norm.Forward(x);
  const torch::Tensor q = Linear(layer.cross.q, Role::kCrossQ, normed, context);
  torch::Tensor k, v;
  if (context.source.size(0) > 0) {
    k = OfSource(layer.cross.k, Role::kCrossK, context);
    v = OfSource(layer.cross.v, Role::kCrossV, context);
  }
  const std::vector<Segment>&queries = context.batch->segments,
        &keys = context.source_batch->segments;
  torch::Tensor mixed;
  if (cache == nullptr) {
    mixed = CrossAttention(q, k, v, queries, keys, Shape(/*causal=*/false));
  } else {
    cache->PutSource(k, v, keys);
    mixed = cache->AttendSource(q, queries, Shape(/*causal=*/false));
  }
  return Linear(layer.cross.o, Role::kCrossO, {mixed, nullptr}, context);
}

// A linear that reads the encoder's output: its hooks see the encoder's micro-batch.
torch::Tensor T5::OfSource(const FrozenLinear& linear, Role role, SiteContext& context) const {
  const MicroBatch* const own = std::exchange(context.batch, context.source_batch);
  const torch::Tensor y = Linear(linear, role, {context.source, nullptr}, context);
  context.batch = own;
  return y;
}

torch::Tensor T5::FeedForward(const Layer& layer, const torch::Tensor& x,
                              SiteContext& context) const {
  const SiteInput normed = layer.ffn_norm.Forward(x);
  SiteInput inner;
  if (config_.gated_ffn) {
    const torch::Tensor gate = Linear(layer.gate, Role::kFfnGate, normed, context);
    inner =
        GatedActivation(gate, Linear(layer.up, Role::kFfnUp, normed, context), activation_);
  } else {
    inner = Activation(Linear(layer.up, Role::kFfnUp, normed, context), activation_);
  }
  return sites_->EditHidden(Role::kFfnOut, Linear(layer.down, Role::kFfnDown, inner, context),
                            context);
}

absl::Status T5::LoadAttention(PartLoader& loader, const std::string& prefix, const char* module,
                               AttentionPart* part) {
  const int64_t width = config_.hidden_size, inner = config_.q_width();
  const std::string name = prefix + module;
  GRAFT_RETURN_IF_ERROR(loader.LoadLinear(name + ".q", inner, width, false, &part->q));
  GRAFT_RETURN_IF_ERROR(loader.LoadLinear(name + ".k", inner, width, false, &part->k));
  GRAFT_RETURN_IF_ERROR(loader.LoadLinear(name + ".v", inner, width, false, &part->v));
  GRAFT_RETURN_IF_ERROR(loader.LoadLinear(name + ".o", width, inner, false, &part->o));
  return loader.LoadNorm(prefix + ".layer_norm", width, false, config_.norm_eps, &part->norm);
}

absl::Status T5::LoadLayer(PartLoader& loader, int index, Layer* layer) {
  const int64_t width = config_.hidden_size, inner = config_.intermediate_size;
  const std::string block = LayerName(config_, index) + ".layer.";
  GRAFT_RETURN_IF_ERROR(LoadAttention(loader, block + "0", ".SelfAttention", &layer->self));
  if (config_.is_decoder_layer(index)) {
    GRAFT_RETURN_IF_ERROR(LoadAttention(loader, block + "1", ".EncDecAttention", &layer->cross));
  }
  const std::string ffn = FeedForwardName(config_, index);
  const std::string dense = ffn + ".DenseReluDense.";
  if (config_.gated_ffn) {
    GRAFT_RETURN_IF_ERROR(loader.LoadLinear(dense + "wi_0", inner, width, false, &layer->gate));
  }
  GRAFT_RETURN_IF_ERROR(loader.LoadLinear(dense + (config_.gated_ffn ? "wi_1" : "wi"), inner, width,
                                          false, &layer->up));
  GRAFT_RETURN_IF_ERROR(loader.LoadLinear(dense + "wo", width, inner, false, &layer->down));
  return loader.LoadNorm(ffn + ".layer_norm", width, false, config_.norm_eps, &layer->ffn_norm);
}

// What the layers of a stack share: each stage with some of them has its own copy.
absl::Status T5::LoadStackParts(PartLoader& loader, WeightSource& weights) {
  const auto load_table = [&](const char* stack, torch::Tensor* table) -> absl::Status {
    GRAFT_ASSIGN_OR_RETURN(
        *table, weights.Load(absl::StrCat(stack,
                                          ".block.0.layer.0.SelfAttention.relative_attention_bias"
                                          ".weight"),
                             {config_.relative_buckets, config_.num_heads}, torch::kFloat32));
    return absl::OkStatus();
  };
  const int64_t encoder = config_.encoder_layers;
  if (range_.first_layer < encoder) GRAFT_RETURN_IF_ERROR(load_table("encoder", &encoder_table_));
  if (range_.end_layer() > encoder) GRAFT_RETURN_IF_ERROR(load_table("decoder", &decoder_table_));
  if (range_.first_layer < encoder && range_.end_layer() >= encoder) {
    GRAFT_RETURN_IF_ERROR(loader.LoadNorm("encoder.final_layer_norm", config_.hidden_size, false,
                                          config_.norm_eps, &encoder_norm_));
  }
  return absl::OkStatus();
}

absl::Status T5::Load(WeightSource& weights) {
  PartLoader loader(weights, options_.dtype);
  if (NeedsEmbedding()) {
    GRAFT_RETURN_IF_ERROR(loader.LoadTable("shared", config_.vocab_size, config_.hidden_size,
                                           FrozenUse::kProductsAndLookup, &embedding_));
  }
  layers_.resize(static_cast<size_t>(range_.num_layers));
  for (size_t i = 0; i < layers_.size(); ++i) {
    GRAFT_RETURN_IF_ERROR(LoadLayer(loader, range_.first_layer + static_cast<int>(i), &layers_[i]));
  }
  GRAFT_RETURN_IF_ERROR(LoadStackParts(loader, weights));
  if (range_.head) {
    GRAFT_RETURN_IF_ERROR(loader.LoadNorm("decoder.final_layer_norm", config_.hidden_size, false,
                                          config_.norm_eps, &head_.norm));
    if (config_.scale_head_input) {
      head_.scale = 1.0 / std::sqrt(static_cast<double>(config_.hidden_size));
    }
    GRAFT_RETURN_IF_ERROR(LoadProjection(loader, "lm_head", embedding_));
  }
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
  const int64_t d = config.hidden_size, f = config.intermediate_size, q = config.q_width();
  std::vector<SiteSpec> sites{
      {{static_cast<int>(config.num_layers), Role::kEmbed}, "shared", d, d}};
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string block = LayerName(config, layer);
    std::vector<SiteSpec> linears;
    const auto add = [&](Role role, const std::string& module, int64_t in, int64_t out) {
      linears.push_back({{layer, role}, module, in, out});
    };
    const auto attention = [&](const std::string& module, Role q_role, Role k, Role v, Role o) {
      add(q_role, module + ".q", d, q);
      add(k, module + ".k", d, q);
      add(v, module + ".v", d, q);
      add(o, module + ".o", q, d);
    };
    attention(block + ".layer.0.SelfAttention", Role::kAttnQ, Role::kAttnK, Role::kAttnV,
              Role::kAttnO);
    const std::string dense = FeedForwardName(config, layer) + ".DenseReluDense.";
    if (config.gated_ffn) add(Role::kFfnGate, dense + "wi_0", d, f);
    add(Role::kFfnUp, dense + (config.gated_ffn ? "wi_1" : "wi"), d, f);
    add(Role::kFfnDown, dense + "wo", f, d);
    if (config.is_decoder_layer(layer)) {
      attention(block + ".layer.1.EncDecAttention", Role::kCrossQ, Role::kCrossK, Role::kCrossV,
                Role::kCrossO);
    }
    AppendLayerSites(config, layer, block, std::move(linears), &sites);
  }
  return sites;
}

}  // namespace graft::models
