// One rank's part of the model: the backbone parts of its chunks and everything that is trained on
// them. Built by the trainer from the plan, run by the executor. It loads the weights of its own
// layers only and does not talk to other ranks.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "adapters/adapter.h"
#include "adapters/adapter_set.h"
#include "models/backbone.h"
#include "sharding/plan.h"

namespace graft::sharding {

// Trainable parameters by unit, as MakePlan wants them. Of those that belong to no layer, soft
// prompts and their generators stand before the first one, a task head behind the last. Pure;
// `matched`: sites of the whole model.
TrainableCounts CountTrainables(const adapters::Method& method,
                                const std::vector<models::SiteSpec>& matched, int num_layers);

models::LayerRange RangeOf(const StageChunk& part);

class Stage {
 public:
  // Loads the layers of `stage` and attaches the method to the sites among `matched` (of the whole
  // model) that lie on them. Errors as of BuildBackbone and Method::Attach. Rank-local.
  static absl::StatusOr<std::unique_ptr<Stage>> Build(
      const Plan& plan, int stage, const models::ModelConfig& config, models::WeightSource& weights,
      const models::BackboneOptions& backbone_options, const adapters::Method& method,
      const std::vector<models::SiteSpec>& matched, const adapters::AttachOptions& attach_options);
  // The same from backbones that exist already, one per chunk of `stage`.
  static absl::StatusOr<std::unique_ptr<Stage>> Assemble(
      const Plan& plan, int stage, std::vector<std::unique_ptr<models::Backbone>> backbones,
      const adapters::Method& method, const std::vector<models::SiteSpec>& matched,
      const adapters::AttachOptions& attach_options);

  int index() const { return index_; }
  int num_chunks() const { return static_cast<int>(backbones_.size()); }
  models::Backbone& backbone(int chunk) { return *backbones_[static_cast<size_t>(chunk)]; }
  adapters::AdapterSet& adapters() { return *adapters_; }
  const adapters::AdapterSet& adapters() const { return *adapters_; }
  int64_t frozen_bytes() const;
  // Of all its parts, with BackboneOptions::quantize.
  models::QuantizationReport quantization() const;
  // Of a method that trains the backbone: leaves by HF name that another part of the model owns
  // (shared_weights.h).
  const std::vector<std::pair<std::string, torch::Tensor>>& weight_copies() const {
    return weight_copies_;
  }

 private:
  Stage() = default;
  int index_ = 0;
  std::vector<std::unique_ptr<models::Backbone>> backbones_;
  // Gives each trained weight of the backbones to its owner's list.
  void SortTrainedWeights(const Plan& plan, const std::vector<adapters::ParameterSpec>& parameters,
                          std::vector<std::pair<std::string, torch::Tensor>>* owned);

  std::unique_ptr<adapters::AdapterSet> adapters_;
  std::vector<std::pair<std::string, torch::Tensor>> weight_copies_;
};

}  // namespace graft::sharding
