#include "models/architectures/layer_stack.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "models/device.h"
#include "models/layers/quantized_weight.h"
#include "models/layers/recompute.h"
#include "models/layers/trained_matrix.h"

namespace graft::models {
namespace {

// The supervised rows of a pass.
LossTargets TargetsOf(const SiteContext& context, torch::Device device) {
  const MicroBatch& batch = *context.batch;
  if (batch.target_rows.empty()) return {};
  return {IndexTensor(batch.target_rows, device), context.inputs != nullptr
                                                      ? context.inputs->target_ids
                                                      : IndexTensor(batch.target_ids, device)};
}

class StackKvCache : public KvCache {
 public:
  StackKvCache(size_t num_layers, KvCacheRoom room) : layers(num_layers), room_(room) {
    if (!room.fixed()) return;
    places_ = std::make_shared<KvPlaces>(room.sequences);
    for (LayerKvCache& layer : layers) layer = LayerKvCache(places_, room.rows);
  }
  void Drop(int64_t sequence) override {
    if (places_ != nullptr) return places_->Drop(sequence);
    for (LayerKvCache& layer : layers) layer.Drop(sequence);
  }
  void Fork(const std::vector<SequenceFork>& forks) override {
    if (places_ != nullptr) {
      const auto copies = places_->Fork(forks);
      for (LayerKvCache& layer : layers) layer.CopyPlaces(copies);
      return;
    }
    for (LayerKvCache& layer : layers) layer.Fork(forks);
  }
  int64_t Length(int64_t sequence) const override {
    return layers.empty() ? 0 : layers[0].Length(sequence);
  }
  KvCacheRoom room() const override { return room_; }
  int64_t Place(int64_t sequence) const override { return places_->Of(sequence); }
  std::vector<LayerKvCache> layers;

 private:
  KvCacheRoom room_;
  std::shared_ptr<KvPlaces> places_;  // of all layers; null: the cache grows
};

}  // namespace

absl::StatusOr<torch::Tensor> PartLoader::Load(const std::string& name,
                                               const std::vector<int64_t>& shape) {
  GRAFT_ASSIGN_OR_RETURN(const torch::Tensor stored, weights_.Load(name, shape, dtype_));
  return Move(name, stored);
}

torch::Tensor PartLoader::Move(const std::string& name, const torch::Tensor& host) {
  torch::Tensor moved = host.to(device_);
  if (!moved.is_same(host)) weights_.NoteMove(name, host, moved);
  return moved;
}

absl::StatusOr<torch::Tensor> PartLoader::LoadLeaf(const std::string& name,
                                                   const std::vector<int64_t>& shape) {
  GRAFT_ASSIGN_OR_RETURN(const torch::Tensor stored, weights_.Load(name, shape, torch::kFloat32));
  // Its own tensor on the source's memory: whoever trains it gives it memory of its own.
  torch::Tensor leaf = stored.to(device_).detach().requires_grad_();
  trained_.emplace_back(name, leaf);
  parameters_ += leaf.numel();
  return leaf;
}

absl::StatusOr<torch::Tensor> PartLoader::LoadVector(const std::string& name, int64_t width) {
  if (train_) return LoadLeaf(name, {width});
  GRAFT_ASSIGN_OR_RETURN(const torch::Tensor stored, Load(name, {width}));
  torch::Tensor vector = stored.to(torch::kFloat32).contiguous();
  if (!vector.is_same(stored)) weights_.NoteCopy(name, vector);
  parameters_ += width;
  bytes_ += static_cast<int64_t>(vector.nbytes());
  return vector;
}

void PartLoader::BeginLayer(int layer) {
  layer_ = layer;
  if (memory_ != nullptr) packer_ = std::make_unique<LayerPacker>(memory_, layer);
}

void PartLoader::EndLayer() {
  if (packer_ != nullptr) bytes_ += packer_->Finish();
  packer_.reset();
}

std::shared_ptr<const FrozenWeight> PartLoader::Freeze(const std::string& name,
                                                       torch::Tensor weight) {
  std::shared_ptr<const FrozenWeight> frozen;
  if (quantize_ == Quantization::kNone) {
    weight = Move(name, weight);
    frozen = packer_ != nullptr ? packer_->AddPlain(weight)
                                : MakeFrozenWeight(std::move(weight), FrozenUse::kProducts);
  } else {
    const QuantizedShape shape{quantize_, weight.size(0), weight.size(1)};
    double error = 0;
    torch::Tensor stored = Move(name, QuantizeMatrix(weight.cpu(), quantize_, &error));
    quantization_.Add(name, error);
    frozen = packer_ != nullptr ? packer_->AddQuantized(std::move(stored), shape, dtype_)
                                : MakeQuantizedWeight(std::move(stored), shape, dtype_);
  }
  weights_.NoteMatrix(name, frozen);
  if (first_trained_layer_ != std::numeric_limits<int>::max())
    frozen->Prepare(/*transposed=*/layer_ >= first_trained_layer_);
  return frozen;
}

void PartLoader::Count(const FrozenLinear& linear) {
  parameters_ += linear.parameters();
  bytes_ += linear.bytes();
}

absl::Status PartLoader::LoadLinear(const std::string& name, int64_t out, int64_t in, bool bias,
                                    FrozenLinear* linear) {
  if (train_) {
    GRAFT_ASSIGN_OR_RETURN(const torch::Tensor leaf, LoadLeaf(name + ".weight", {out, in}));
    torch::Tensor shift_leaf;
    if (bias) {
      GRAFT_ASSIGN_OR_RETURN(shift_leaf, LoadLeaf(name + ".bias", {out}));
    }
    *linear = FrozenLinear(std::make_shared<TrainedMatrix>(leaf, dtype_), shift_leaf, 0);
    return absl::OkStatus();
  }
  GRAFT_ASSIGN_OR_RETURN(torch::Tensor weight,
                         weights_.Load(name + ".weight", {out, in}, MatrixType()));
  torch::Tensor shift;
  if (bias) {
    GRAFT_ASSIGN_OR_RETURN(shift, Load(name + ".bias", {out}));
  }
  *linear = FrozenLinear(Freeze(name + ".weight", std::move(weight)), shift);
  Count(*linear);
  return absl::OkStatus();
}

absl::Status PartLoader::LoadConv1D(const std::string& name, int64_t out, int64_t in,
                                    const std::vector<FrozenLinear*>& linears) {
  const int64_t part = out / static_cast<int64_t>(linears.size());
  int64_t begin = 0;
  if (train_) {
    GRAFT_ASSIGN_OR_RETURN(const torch::Tensor leaf, LoadLeaf(name + ".weight", {in, out}));
    GRAFT_ASSIGN_OR_RETURN(const torch::Tensor shift, LoadLeaf(name + ".bias", {out}));
    for (FrozenLinear* linear : linears) {
      *linear =
          FrozenLinear(std::make_shared<TrainedMatrix>(leaf, dtype_, begin, part), shift, begin);
      begin += part;
    }
    return absl::OkStatus();
  }
  GRAFT_ASSIGN_OR_RETURN(const torch::Tensor weight,
                         weights_.Load(name + ".weight", {in, out}, MatrixType()));
  GRAFT_ASSIGN_OR_RETURN(const torch::Tensor bias, Load(name + ".bias", {out}));
  for (FrozenLinear* linear : linears) {
    *linear = FrozenLinear(Freeze(name + ".weight", weight.narrow(1, begin, part).t()),
                           bias.narrow(0, begin, part));
    Count(*linear);
    begin += part;
  }
  return absl::OkStatus();
}

absl::Status PartLoader::LoadNorm(const std::string& name, int64_t width, bool layer_norm,
                                  double eps, Norm* norm) {
  norm->eps = eps;
  GRAFT_ASSIGN_OR_RETURN(norm->weight, LoadVector(name + ".weight", width));
  if (layer_norm) {
    GRAFT_ASSIGN_OR_RETURN(norm->bias, LoadVector(name + ".bias", width));
  }
  return absl::OkStatus();
}

absl::Status PartLoader::LoadTable(const std::string& name, int64_t rows, int64_t width,
                                   FrozenUse use, std::shared_ptr<const FrozenWeight>* table,
                                   int64_t padding_row) {
  if (train_) {
    GRAFT_ASSIGN_OR_RETURN(const torch::Tensor leaf, LoadLeaf(name + ".weight", {rows, width}));
    *table = std::make_shared<TrainedMatrix>(leaf, dtype_, padding_row);
    return absl::OkStatus();
  }
  GRAFT_ASSIGN_OR_RETURN(torch::Tensor weight, Load(name + ".weight", {rows, width}));
  *table = MakeFrozenWeight(std::move(weight), use);
  weights_.NoteMatrix(name + ".weight", *table);
  parameters_ += rows * width;
  bytes_ += (*table)->bytes();
  return absl::OkStatus();
}

absl::Status LayerStack::LoadLayers(PartLoader& loader,
                                    const std::function<absl::Status(int, size_t)>& load) const {
  for (int i = 0; i < range_.num_layers; ++i) {
    loader.BeginLayer(range_.first_layer + i);
    GRAFT_RETURN_IF_ERROR(load(range_.first_layer + i, static_cast<size_t>(i)));
    loader.EndLayer();
  }
  return absl::OkStatus();
}

torch::Tensor LayerStack::LossSum(const torch::Tensor& h, SiteContext& context) {
  return HeadLossSum(h, TargetsOf(context, h.device()), head_);
}

torch::Tensor LayerStack::TaskOutputs(const torch::Tensor& h, SiteContext& context) {
  context.layer = static_cast<int>(config_.num_layers);
  const torch::Tensor pooled = Pool(h, *context.batch).to(torch::kFloat32);
  return sites_->EditHidden(Role::kHead, pooled, context);
}

torch::Tensor LayerStack::Pool(const torch::Tensor& h, const MicroBatch& batch) const {
  std::vector<int64_t> rows;
  for (const Segment& segment : batch.segments) rows.push_back(segment.begin + segment.length - 1);
  return head_.norm.Forward(h.index_select(0, IndexTensor(rows, h.device()))).value;
}

TargetResults LayerStack::EvaluateTargets(const torch::Tensor& h, SiteContext& context) {
  return HeadTargets(h, TargetsOf(context, h.device()), head_);
}

torch::Tensor LayerStack::Logits(const torch::Tensor& h, const std::vector<int64_t>& rows) {
  return HeadLogits(h, rows, head_);
}

std::unique_ptr<KvCache> LayerStack::NewKvCache(KvCacheRoom room) const {
  return std::make_unique<StackKvCache>(static_cast<size_t>(range_.num_layers), room);
}

torch::Tensor LayerStack::RunLayers(torch::Tensor h, size_t begin, size_t end, SiteContext& context,
                                    KvCache* cache, const LayerBody& body) const {
  auto* kv = static_cast<StackKvCache*>(cache);
  for (size_t i = begin; i < end; ++i) {
    LayerKvCache* layer_cache = kv == nullptr ? nullptr : &kv->layers[i];
    context.layer = range_.first_layer + static_cast<int>(i);
    if (context.layer < context.first_layer || context.layer >= context.end_layer) continue;
    const bool source_has_backward = context.source.defined() && context.source.requires_grad();
    const bool has_backward = h.requires_grad() || source_has_backward ||
                              sites_->HasLayer(context.layer) || options_.train_weights;
    if (options_.recompute && cache == nullptr && has_backward) {
      // The recomputation outlives this call, so it brings its own context.
      SiteContext entry = context;
      entry.source = torch::Tensor();
      h = Recomputed(h, context.source,
                     [body, i, entry](const torch::Tensor& x, const torch::Tensor& source) {
                       SiteContext again = entry;
                       again.source = source;
                       return body(i, x, again, nullptr);
                     });
    } else {
      h = body(i, h, context, layer_cache);
    }
  }
  return h;
}

torch::Tensor LayerStack::Linear(const FrozenLinear& linear, Role role, SiteInput x,
                                 SiteContext& context) const {
  x = sites_->EditInput(role, std::move(x), context);
  return sites_->EditOutput(role, x, linear.Forward(x.value), context);
}

torch::Tensor LayerStack::Attend(const torch::Tensor& q, const torch::Tensor& k,
                                 const torch::Tensor& v, const AttentionShape& shape,
                                 SiteContext& context, LayerKvCache* cache) const {
  const auto& segments = context.batch->segments;
  return cache == nullptr ? Attention(q, k, v, segments, shape)
                          : cache->Attend(q, k, v, segments, shape, context.decoding);
}

torch::Tensor LayerStack::TokenIds(const SiteContext& context) const {
  if (context.decoding != nullptr) return context.decoding->tokens;
  if (context.inputs != nullptr) return context.inputs->tokens;
  return IndexTensor(context.batch->tokens, options_.device);
}

torch::Tensor LayerStack::EmbedTokens(const FrozenWeight& table, SiteContext& context) const {
  context.layer = static_cast<int>(config_.num_layers);
  return sites_->EditHidden(Role::kEmbed, table.Rows(TokenIds(context)), context);
}

absl::Status LayerStack::LoadProjection(PartLoader& loader, const std::string& name,
                                        std::shared_ptr<const FrozenWeight> embedding) {
  if (!options_.language_head) return absl::OkStatus();
  std::shared_ptr<const FrozenWeight> projection = std::move(embedding);
  if (!config_.tie_word_embeddings) {
    GRAFT_RETURN_IF_ERROR(loader.LoadTable(name, config_.vocab_size, config_.hidden_size,
                                           FrozenUse::kProducts, &projection));
  }
  if (options_.first_trained_layer != std::numeric_limits<int>::max())
    projection->Prepare(/*transposed=*/true);
  head_.projection = FrozenLinear(projection, torch::Tensor());
  return absl::OkStatus();
}

void AppendLayerSites(const ModelConfig& config, int layer, const std::string& module,
                      std::vector<SiteSpec> linears, std::vector<SiteSpec>* sites) {
  const int64_t width = config.hidden_size;
  std::string attention_out, ffn_out;
  bool fan_in_fan_out = false;  // of those two modules
  for (SiteSpec& linear : linears) {
    if (linear.id.role == Role::kAttnO) attention_out = linear.module;
    if (linear.id.role == Role::kFfnDown) {
      ffn_out = linear.module;
      fan_in_fan_out = linear.fan_in_fan_out;
    }
    sites->push_back(std::move(linear));
  }
  sites->push_back({{layer, Role::kLayerIn}, module, width, width});
  sites->push_back({{layer, Role::kAttnOut}, attention_out, width, width, fan_in_fan_out});
  sites->push_back({{layer, Role::kFfnOut}, ffn_out, width, width, fan_in_fan_out});
  sites->push_back({{layer, Role::kLayerOut}, module, width, width});
}

}  // namespace graft::models
