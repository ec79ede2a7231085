// A tiny backbone and a tiny method with the interfaces of the real ones, for tests of what lies
// between them: stages, pipeline, checkpoints. Layer l: h -> tanh(h W_l^T), then the site
// layer.out, where the method computes y * scale + bias with both trained.
#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "adapters/adapter.h"
#include "base/status.h"
#include "models/backbone.h"
#include "models/layers/head_loss.h"

namespace graft::testing {

inline constexpr int64_t kWidth = 6;
inline constexpr int64_t kVocab = 11;

inline models::ModelConfig FakeConfig(int num_layers) {
  models::ModelConfig config;
  config.model_type = "fake";
  config.hidden_size = kWidth;
  config.num_layers = num_layers;
  config.num_heads = config.num_kv_heads = 1;
  config.head_dim = kWidth;
  config.intermediate_size = 4 * kWidth;
  config.vocab_size = kVocab;
  return config;
}

// The same values for the same number, on every rank.
inline torch::Tensor FakeWeight(int64_t rows, int64_t columns, int number) {
  const torch::Tensor index = at::arange(rows * columns, at::kDouble);
  return at::sin(index * 1.7 + number * 0.9).to(at::kFloat).view({rows, columns});
}

class FakeBackbone : public models::Backbone {
 public:
  FakeBackbone(const models::ModelConfig& config, models::LayerRange range)
      : Backbone(config, range) {}
  int64_t frozen_parameters() const override { return range_.num_layers * kWidth * kWidth; }
  int64_t frozen_bytes() const override { return 4 * frozen_parameters(); }

  torch::Tensor Embed(models::SiteContext& context) override {
    context.layer = static_cast<int>(config_.num_layers);
    const torch::Tensor ids = at::tensor(context.batch->tokens, at::kLong);
    return sites_->EditHidden(models::Role::kEmbed,
                              FakeWeight(kVocab, kWidth, 100).index_select(0, ids), context);
  }
  torch::Tensor Layers(torch::Tensor h, models::SiteContext& context,
                       models::KvCache* /*cache*/) override {
    passes_with_grad += at::GradMode::is_enabled() ? 1 : 0;
    trained_dropout += context.training ? 1 : 0;
    for (int layer = range_.first_layer; layer < range_.end_layer(); ++layer) {
      context.layer = layer;
      h = sites_->EditHidden(models::Role::kLayerIn, h, context);
      h = at::tanh(at::matmul(h, FakeWeight(kWidth, kWidth, layer).t()));
      h = sites_->EditHidden(models::Role::kLayerOut, h, context);
    }
    return h;
  }
  torch::Tensor LossSum(const torch::Tensor& h, models::SiteContext& context) override {
    const torch::Tensor ids = at::tensor(context.batch->target_ids, at::kLong);
    return -at::log_softmax(TargetLogits(h, context), 1).gather(1, ids.view({-1, 1})).sum();
  }
  torch::Tensor TaskOutputs(const torch::Tensor&, models::SiteContext&) override { return {}; }
  models::TargetResults EvaluateTargets(const torch::Tensor& h,
                                        models::SiteContext& context) override {
    const torch::Tensor ids = at::tensor(context.batch->target_ids, at::kLong);
    const torch::Tensor logits = TargetLogits(h, context);
    return {-at::log_softmax(logits, 1).gather(1, ids.view({-1, 1})).view({-1}),
            logits.argmax(1) == ids};
  }
  torch::Tensor Logits(const torch::Tensor&, const std::vector<int64_t>&) override { return {}; }
  std::unique_ptr<models::KvCache> NewKvCache(models::KvCacheRoom /*room*/) const override {
    return nullptr;
  }

  int passes_with_grad = 0;
  int trained_dropout = 0;

 private:
  static torch::Tensor TargetLogits(const torch::Tensor& h, const models::SiteContext& context) {
    const torch::Tensor rows = at::tensor(context.batch->target_rows, at::kLong);
    return at::matmul(h.index_select(0, rows), FakeWeight(kVocab, kWidth, 200).t()).to(at::kDouble);
  }
};

class ScaleAndBias : public models::SiteHook {
 public:
  ScaleAndBias(torch::Tensor scale, torch::Tensor bias)
      : scale_(std::move(scale)), bias_(std::move(bias)) {}
  torch::Tensor EditOutput(const models::SiteInput&, torch::Tensor y,
                           models::SiteContext&) override {
    return y * scale_ + bias_;
  }

 private:
  torch::Tensor scale_, bias_;
};

class FakeMethod : public adapters::Method {
 public:
  // Acts on the output of these layers; -1 = on the embedding.
  explicit FakeMethod(std::vector<int> layers) : layers_(std::move(layers)) {}
  const char* name() const override { return "fake"; }
  void VisitFields(FieldVisitor&) override {}
  absl::StatusOr<std::vector<models::SiteSpec>> MatchSites(
      const std::vector<models::SiteSpec>& sites) const override {
    return sites;
  }
  std::vector<models::SiteSpec> Sites(int num_layers) const {
    std::vector<models::SiteSpec> sites;
    for (int layer : layers_) {
      models::SiteSpec site;
      site.id = layer >= 0 ? models::SiteId{layer, models::Role::kLayerOut}
                           : models::SiteId{num_layers, models::Role::kEmbed};
      site.module = "layers." + std::to_string(layer);
      site.in_features = site.out_features = kWidth;
      sites.push_back(site);
    }
    return sites;
  }
  std::vector<adapters::ParameterSpec> Parameters(
      const std::vector<models::SiteSpec>& matched) const override {
    std::vector<adapters::ParameterSpec> specs;
    for (const models::SiteSpec& site : matched) {
      specs.push_back({site.module + ".scale", {kWidth}, site.id.layer});
      specs.push_back({site.module + ".bias", {kWidth}, site.id.layer});
    }
    return specs;
  }
  absl::StatusOr<adapters::Attachment> Attach(const std::vector<models::SiteSpec>& sites,
                                              const adapters::AttachOptions&) const override {
    adapters::Attachment attachment;
    for (const models::SiteSpec& site : sites) {
      const int layer = site.id.layer;
      torch::Tensor scale = 1 + 0.1 * FakeWeight(1, kWidth, 300 + layer).view({kWidth});
      torch::Tensor bias = 0.1 * FakeWeight(1, kWidth, 400 + layer).view({kWidth});
      scale.requires_grad_(true);
      bias.requires_grad_(true);
      attachment.parameters.push_back({site.module + ".scale", scale, layer});
      attachment.parameters.push_back({site.module + ".bias", bias, layer});
      attachment.hooks.emplace_back(site.id, std::make_shared<ScaleAndBias>(scale, bias));
    }
    return attachment;
  }
  nlohmann::json PeftConfig(const std::vector<models::SiteSpec>&,
                            const adapters::PeftContext&) const override {
    return {};
  }
  absl::Status CheckPeftConfig(const nlohmann::json&, const std::string&) const override {
    return absl::OkStatus();
  }

 private:
  std::vector<int> layers_;
};

inline std::vector<int> LayersUpTo(int num_layers) {
  std::vector<int> layers(static_cast<size_t>(num_layers));
  std::iota(layers.begin(), layers.end(), 0);
  return layers;
}

// Two samples each, of different lengths; the last one has a single short sample.
inline std::vector<models::MicroBatch> FakeMicroBatches(int count) {
  std::vector<models::MicroBatch> batches;
  for (int i = 0; i < count; ++i) {
    models::MicroBatch batch;
    batch.step = 3;
    batch.index = i;
    const std::vector<int64_t> lengths =
        i + 1 == count ? std::vector<int64_t>{2} : std::vector<int64_t>{3 + i % 3, 4};
    for (int64_t length : lengths) {
      const int64_t begin = batch.num_rows();
      batch.segments.push_back({10 * i + begin, begin, length, 1});
      for (int64_t t = 0; t < length; ++t) {
        batch.tokens.push_back((7 * i + 3 * begin + 5 * t) % kVocab);
        batch.positions.push_back(t);
        if (t + 1 == length) continue;
        batch.target_rows.push_back(begin + t);
        batch.target_ids.push_back((2 * i + t + 1) % kVocab);
      }
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

}  // namespace graft::testing
