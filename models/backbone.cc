#include "models/backbone.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "models/architectures/gpt2.h"
#include "models/architectures/llama.h"
#include "models/architectures/roberta.h"
#include "models/architectures/t5.h"
#include "models/weights/expected_tensors.h"

namespace graft::models {
namespace {

// One row per architecture family; a new backbone adds its line here.
struct Family {
  std::vector<std::string> model_types;
  absl::StatusOr<std::unique_ptr<Backbone>> (*build)(const ModelConfig&, LayerRange, WeightSource&,
                                                     const BackboneOptions&);
  std::vector<SiteSpec> (*sites)(const ModelConfig&);
};

const Family* FindFamily(const std::string& model_type) {
  static const std::vector<Family> families = {
      {{"llama", "mistral", "qwen2"}, BuildLlama, ListLlamaSites},
      {{"gpt2"}, BuildGpt2, ListGpt2Sites},
      {{"roberta"}, BuildRoberta, ListRobertaSites},
      {{"t5"}, BuildT5, ListT5Sites},
  };
  for (const Family& family : families) {
    for (const std::string& name : family.model_types) {
      if (name == model_type) return &family;
    }
  }
  return nullptr;
}

const Family& KnownFamily(const ModelConfig& config) {
  const Family* family = FindFamily(config.model_type);
  GRAFT_CHECK(family != nullptr, "no architecture for model_type " + config.model_type);
  return *family;
}

class KeepHidden : public SiteHook {
 public:
  torch::Tensor EditOutput(const SiteInput& /*x*/, torch::Tensor y,
                           SiteContext& /*context*/) override {
    kept = y.clone();
    return y;
  }
  torch::Tensor kept;
};

}  // namespace

torch::Tensor Backbone::WordEmbeddings(const std::vector<int64_t>& ids) {
  const auto keep = std::make_shared<KeepHidden>();
  auto table = std::make_shared<SiteTable>();
  for (const SiteSpec& site : ListSites(config_)) {
    if (site.id.role == Role::kEmbed) table->Add(site.id, keep);
  }
  MicroBatch batch, decoder;
  batch.segments.push_back({.length = static_cast<int64_t>(ids.size())});
  batch.tokens = ids;
  batch.positions.assign(ids.size(),
                         0);  // read behind the site; there may be more ids than positions
  SiteContext context;
  context.batch = &batch;
  if (config_.has_encoder()) {
    decoder.source = std::make_shared<const MicroBatch>(std::move(batch));
    context.batch = &decoder;
  }
  torch::NoGradGuard no_grad;
  std::swap(sites_, table);
  Embed(context);
  std::swap(sites_, table);
  return keep->kept;
}

absl::StatusOr<std::unique_ptr<Backbone>> BuildBackbone(const ModelConfig& config, LayerRange range,
                                                        WeightSource& weights,
                                                        const BackboneOptions& options) {
  return KnownFamily(config).build(config, range, weights, options);
}

std::vector<SiteSpec> ListSites(const ModelConfig& config) {
  return KnownFamily(config).sites(config);
}

TaskHeadModule TaskHeadOf(const ModelConfig& config) {
  return config.causal ? TaskHeadModule{"score", false} : TaskHeadModule{"classifier", true};
}

int64_t CountParameters(const ModelConfig& config) {
  int64_t count = 0;
  for (const auto& [name, shape] : ExpectedTensors(config)) count += c10::multiply_integers(shape);
  return count;
}

}  // namespace graft::models
