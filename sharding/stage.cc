#include "sharding/stage.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::sharding {
namespace {

// The chunk of the stage that has the site; -1 = another stage's.
int ChunkOf(const Plan& plan, int stage, const models::SiteId& site) {
  for (int chunk = 0; chunk < plan.chunks; ++chunk) {
    const StageChunk& part = plan.Part(stage, chunk);
    const bool here = site.layer >= part.first_layer && site.layer < part.end_layer();
    const bool outside = site.role == models::Role::kHead ? part.head : part.embed;
    if (here || (site.layer == plan.num_layers && outside)) return chunk;
  }
  return -1;
}

// Whether a part owns what belongs to `layer`, in the numbering of NamedParameter.
bool Owns(const Plan& plan, const StageChunk& part, int layer) {
  if (layer < plan.num_layers) return layer >= part.first_layer && layer < part.end_layer();
  return layer == plan.num_layers ? part.embed : part.head;
}

}  // namespace

TrainableCounts CountTrainables(const adapters::Method& method,
                                const std::vector<models::SiteSpec>& matched, int num_layers) {
  TrainableCounts counts;
  counts.layers.assign(static_cast<size_t>(num_layers), 0);
  for (const adapters::ParameterSpec& parameter : method.Parameters(matched)) {
    int64_t size = 1;
    for (int64_t dim : parameter.shape) size *= dim;
    if (parameter.layer < num_layers) {
      counts.layers[static_cast<size_t>(parameter.layer)] += size;
    } else {
      (parameter.layer == num_layers ? counts.embed : counts.head) += size;
    }
  }
  return counts;
}

models::LayerRange RangeOf(const StageChunk& part) {
  return {part.first_layer, part.num_layers, part.embed, part.head};
}

absl::StatusOr<std::unique_ptr<Stage>> Stage::Build(
    const Plan& plan, int stage, const models::ModelConfig& config, models::WeightSource& weights,
    const models::BackboneOptions& backbone_options, const adapters::Method& method,
    const std::vector<models::SiteSpec>& matched, const adapters::AttachOptions& attach_options) {
  std::vector<std::unique_ptr<models::Backbone>> backbones;
  for (int chunk = 0; chunk < plan.chunks; ++chunk) {
    GRAFT_ASSIGN_OR_RETURN(
        std::unique_ptr<models::Backbone> backbone,
        models::BuildBackbone(config, RangeOf(plan.Part(stage, chunk)), weights, backbone_options));
    backbones.push_back(std::move(backbone));
  }
  return Assemble(plan, stage, std::move(backbones), method, matched, attach_options);
}

absl::StatusOr<std::unique_ptr<Stage>> Stage::Assemble(
    const Plan& plan, int stage, std::vector<std::unique_ptr<models::Backbone>> backbones,
    const adapters::Method& method, const std::vector<models::SiteSpec>& matched,
    const adapters::AttachOptions& attach_options) {
  GRAFT_CHECK(static_cast<int>(backbones.size()) == plan.chunks,
              absl::StrCat(backbones.size(), " backbone parts for ", plan.chunks, " chunks"));
  auto result = std::unique_ptr<Stage>(new Stage());
  result->index_ = stage;
  result->backbones_ = std::move(backbones);
  std::vector<models::SiteSpec> mine;
  for (const models::SiteSpec& site : matched) {
    if (ChunkOf(plan, stage, site.id) >= 0) mine.push_back(site);
  }
  adapters::AttachOptions options = attach_options;
  for (const auto& backbone : result->backbones_) {
    if (!backbone->range().embed) continue;
    options.vocab_size = backbone->config().vocab_size;
    options.word_embeddings = [&backbone](const std::vector<int64_t>& ids) {
      return backbone->WordEmbeddings(ids);
    };
  }
  if (method.trains_backbone()) {
    result->SortTrainedWeights(plan, method.Parameters(matched), &options.trained_weights);
  }
  GRAFT_ASSIGN_OR_RETURN(result->adapters_,
                         adapters::AdapterSet::Attach(
                             method, mine, options, [&](models::SiteId site) -> models::SiteTable& {
                               return result->backbone(ChunkOf(plan, stage, site)).sites();
                             }));
  return result;
}

void Stage::SortTrainedWeights(const Plan& plan,
                               const std::vector<adapters::ParameterSpec>& parameters,
                               std::vector<std::pair<std::string, torch::Tensor>>* owned) {
  std::map<std::string, int> layers;
  for (const adapters::ParameterSpec& parameter : parameters)
    layers[parameter.name] = parameter.layer;
  for (int chunk = 0; chunk < num_chunks(); ++chunk) {
    const StageChunk& part = plan.Part(index_, chunk);
    for (const auto& [name, leaf] : backbone(chunk).trained_weights()) {
      if (Owns(plan, part, layers.at(name))) {
        owned->emplace_back(name, leaf);
      } else {
        leaf.set_data(leaf.detach().clone());  // the owner's is given memory by the AdapterSet
        weight_copies_.emplace_back(name, leaf);
      }
    }
  }
}

models::QuantizationReport Stage::quantization() const {
  models::QuantizationReport report;
  for (const auto& backbone : backbones_) report.Append(backbone->quantization());
  return report;
}

int64_t Stage::frozen_bytes() const {
  int64_t bytes = 0;
  for (const auto& backbone : backbones_) bytes += backbone->frozen_bytes();
  return bytes;
}

}  // namespace graft::sharding
