#include "sharding/model_encoder.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/text.h"
#include "models/backbone.h"
#include "models/weights/expected_tensors.h"
#include "models/weights/folder_fingerprint.h"

namespace graft::sharding {
namespace {

absl::StatusOr<models::ModelConfig> ReadEncoderConfig(const std::string& folder) {
  GRAFT_ASSIGN_OR_RETURN(models::ModelConfig config, models::ReadModelConfig(folder));
  if (config.model_type == "roberta") return config;
  return InputError(absl::StrCat(Printable(folder, 512), "/config.json: model_type: found \"",
                                 Printable(config.model_type),
                                 "\", a prompt encoder must be a \"roberta\""));
}

class ModelEncoder : public adapters::PromptEncoder {
 public:
  ModelEncoder(std::unique_ptr<models::Backbone> model, const adapters::PromptEncoderChoice& choice)
      : model_(std::move(model)), choice_(choice) {}

  std::vector<std::pair<std::string, torch::Tensor>> trained_weights() const override {
    return model_->trained_weights();
  }

  torch::Tensor Encode(const torch::Tensor& y, const models::MicroBatch& batch,
                       const std::vector<models::Segment>& segments) override {
    GRAFT_CHECK(batch.prompts != nullptr, "the micro-batch has no prompts for an encoder");
    at::AutoGradMode mode(choice_.train && at::GradMode::is_enabled());
    const models::MicroBatch chosen = Choose(batch, segments);
    const auto wide = y.options().dtype(torch::kFloat32).requires_grad(false);
    if (chosen.num_rows() == 0)
      return at::zeros({static_cast<int64_t>(segments.size()), width()}, wide);
    models::SiteContext context;
    context.batch = &chosen;
    const torch::Tensor h = model_->Layers(model_->Embed(context), context).to(torch::kFloat32);
    std::vector<torch::Tensor> rows;
    for (const models::Segment& prompt : chosen.segments) {
      rows.push_back(prompt.length == 0 ? at::zeros({width()}, wide) : Pool(h, prompt));
    }
    return at::stack(rows);
  }

 private:
  int64_t width() const { return model_->config().hidden_size; }

  torch::Tensor Pool(const torch::Tensor& h, const models::Segment& prompt) const {
    if (choice_.pool == "mean") return h.narrow(0, prompt.begin, prompt.length).mean(0);
    return h[choice_.pool == "first" ? prompt.begin : prompt.begin + prompt.length - 1];
  }

  // The prompts of these samples alone.
  static models::MicroBatch Choose(const models::MicroBatch& batch,
                                   const std::vector<models::Segment>& segments) {
    models::MicroBatch chosen;
    size_t next = 0;
    for (size_t i = 0; i < batch.segments.size() && next < segments.size(); ++i) {
      if (batch.segments[i].begin != segments[next].begin) continue;
      ++next;
      models::Segment prompt = batch.prompts->segments[i];
      const auto ids = batch.prompts->tokens.begin() + prompt.begin;
      const auto positions = batch.prompts->positions.begin() + prompt.begin;
      prompt.begin = chosen.num_rows();
      chosen.tokens.insert(chosen.tokens.end(), ids, ids + prompt.length);
      chosen.positions.insert(chosen.positions.end(), positions, positions + prompt.length);
      chosen.segments.push_back(prompt);
    }
    return chosen;
  }

  const std::unique_ptr<models::Backbone> model_;
  const adapters::PromptEncoderChoice choice_;
};

}  // namespace

absl::StatusOr<adapters::EncoderFacts> ReadEncoderFacts(const std::string& folder,
                                                        bool follow_links) {
  GRAFT_ASSIGN_OR_RETURN(const models::ModelConfig config, ReadEncoderConfig(folder));
  adapters::EncoderFacts facts;
  GRAFT_ASSIGN_OR_RETURN(facts.fingerprint, models::FolderFingerprint(folder, follow_links));
  facts.width = config.hidden_size;
  facts.vocab_size = config.vocab_size;
  facts.max_positions = config.max_positions;
  for (models::PlacedTensor& tensor : models::PlacedTensors(config, /*language_head=*/false)) {
    facts.weights.push_back({std::move(tensor.name), std::move(tensor.shape), tensor.layer});
  }
  return facts;
}

absl::StatusOr<std::shared_ptr<adapters::PromptEncoder>> LoadModelEncoder(
    const adapters::PromptEncoderChoice& choice, models::WeightSource& weights, torch::Dtype dtype,
    torch::Device device) {
  GRAFT_ASSIGN_OR_RETURN(const models::ModelConfig config, ReadEncoderConfig(choice.path));
  models::BackboneOptions options;
  options.dtype = dtype;
  options.device = device;
  options.language_head = false;
  options.train_weights = choice.train;
  const models::LayerRange all{0, static_cast<int>(config.num_layers), true, false};
  GRAFT_ASSIGN_OR_RETURN(std::unique_ptr<models::Backbone> model,
                         models::BuildBackbone(config, all, weights, options));
  return std::make_shared<ModelEncoder>(std::move(model), choice);
}

}  // namespace graft::sharding
