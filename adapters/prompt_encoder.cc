#include "adapters/prompt_encoder.h"

#include <map>
#include <memory>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "adapters/peft_config.h"
#include "adapters/prompt_pool.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::adapters {
namespace {

class EmbeddingMean : public PromptEncoder {
 public:
  torch::Tensor Encode(const torch::Tensor& y, const models::MicroBatch& /*batch*/,
                       const std::vector<models::Segment>& segments) override {
    return PoolPrompts({y.detach(), nullptr}, segments, Pooling::kMean);
  }
};

std::string NameOf(const std::string& prefix, const ParameterSpec& weight) {
  return absl::StrCat(prefix, ".encoder.", weight.name);
}

}  // namespace

void PromptEncoderField::Visit(FieldVisitor& v) {
  v.Begin({"encoder", "what turns a sample's prompt into one vector"});
  v.Text({"type",
          "embedding_mean: mean of the backbone's word embeddings of the prompt's tokens; model: a "
          "RoBERTa-family model, which reads encoder_ids of the data set"},
         &type_, {"embedding_mean", "model"});
  v.Text({"path", "type model: its folder"}, &choice_.path);
  v.Text({"pool", "type model: last hidden state of the first or the last token, or their mean"},
         &choice_.pool, {"first", "mean", "last"});
  v.Bool({"train", "type model: its weights are trained too, with float32 masters"},
         &choice_.train);
  v.End();
}

absl::Status PromptEncoderField::Open(const ModelFacts& model) {
  if (type_ == "embedding_mean") {
    const PromptEncoderChoice fresh;
    if (choice_.path.empty() && choice_.pool == fresh.pool && !choice_.train) {
      return absl::OkStatus();
    }
    return RecipeError(
        "adapter.encoder: path, pool and train belong to type model, found type embedding_mean");
  }
  if (choice_.path.empty()) {
    return RecipeError(
        "adapter.encoder.path: absent, type model needs the folder of a RoBERTa-family model");
  }
  GRAFT_CHECK(model.read_encoder != nullptr, "nobody reads the folder of a prompt encoder");
  absl::StatusOr<EncoderFacts> facts = model.read_encoder(choice_.path);
  if (!facts.ok()) {
    return MakeError(KindOf(facts.status()),
                     absl::StrCat("adapter.encoder.path: ", facts.status().message()));
  }
  choice_.facts = *std::move(facts);
  return absl::OkStatus();
}

std::vector<ParameterSpec> PromptEncoderField::Parameters(const std::string& prefix,
                                                          int layer) const {
  std::vector<ParameterSpec> parameters;
  if (model() == nullptr || !choice_.train) return parameters;
  for (const ParameterSpec& weight : choice_.facts.weights) {
    parameters.push_back({NameOf(prefix, weight), weight.shape, layer});
  }
  return parameters;
}

std::shared_ptr<PromptEncoder> PromptEncoderField::Attach(
    const AttachOptions& options, const std::string& prefix, int layer,
    std::vector<NamedParameter>* parameters) const {
  if (model() == nullptr) return std::make_shared<EmbeddingMean>();
  GRAFT_CHECK(options.prompt_encoder != nullptr, "the stage has no prompt encoder");
  const auto trained = options.prompt_encoder->trained_weights();
  const std::map<std::string, torch::Tensor> leaves(trained.begin(), trained.end());
  for (const ParameterSpec& weight : choice_.facts.weights) {
    if (!choice_.train) break;
    parameters->push_back({NameOf(prefix, weight), leaves.at(weight.name), layer});
  }
  return options.prompt_encoder;
}

nlohmann::json PromptEncoderField::Json() const {
  if (model() == nullptr) return {{"type", type_}};
  return {{"type", type_},
          {"path", choice_.path},
          {"pool", choice_.pool},
          {"train", choice_.train},
          {"fingerprint", choice_.facts.fingerprint}};
}

absl::Status PromptEncoderField::Check(const nlohmann::json& config,
                                       const std::string& origin) const {
  GRAFT_ASSIGN_OR_RETURN(const nlohmann::json* found, GetObject(config, "encoder", origin));
  const std::string where = absl::StrCat(origin, ": encoder");
  GRAFT_RETURN_IF_ERROR(CheckSameText(*found, "type", type_, where));
  if (model() == nullptr) return absl::OkStatus();
  GRAFT_RETURN_IF_ERROR(CheckSameText(*found, "pool", choice_.pool, where));
  // A trained encoder's weights are in the folder: where they started from does not matter.
  if (choice_.train || !found->contains("fingerprint")) return absl::OkStatus();
  return CheckSameText(*found, "fingerprint", choice_.facts.fingerprint, where);
}

}  // namespace graft::adapters
