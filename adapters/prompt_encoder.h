// What turns a sample's prompt into the one vector e that idpg and lopa read (methods.md 10,
// `encoder`): the mean of the backbone's word embeddings, or a model of its own. adapters/ sees no
// architecture, so whoever builds the stage gives the model (sharding/model_encoder.h).
//
// Shapes: K segments that begin here, h width of e.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>
#include <nlohmann/json_fwd.hpp>

#include "adapters/adapter.h"
#include "base/fields.h"
#include "models/site.h"

namespace graft::adapters {

class PromptEncoder {
 public:
  virtual ~PromptEncoder() = default;
  // e (K, h) float32 of `segments`, which are some of the batch's in their order; `y`: the hidden
  // state at the `embed` site. Differentiable in trained_weights().
  virtual torch::Tensor Encode(const torch::Tensor& y, const models::MicroBatch& batch,
                               const std::vector<models::Segment>& segments) = 0;
  // By HF name, float32 leaves; none of a frozen one.
  virtual std::vector<std::pair<std::string, torch::Tensor>> trained_weights() const { return {}; }
};

// `encoder:` of idpg and lopa.
class PromptEncoderField {
 public:
  void Visit(FieldVisitor& visitor);
  // Checks the keys and, for type model, asks the model for what it is. Kind recipe, input.
  absl::Status Open(const ModelFacts& model);

  // Null for embedding_mean.
  const PromptEncoderChoice* model() const { return choice_.path.empty() ? nullptr : &choice_; }
  // h, for a backbone of this width.
  int64_t WidthFor(int64_t backbone) const {
    return model() == nullptr ? backbone : choice_.facts.width;
  }
  // `{prefix}.encoder.{HF name}` of a trained encoder, owned by `layer`.
  std::vector<ParameterSpec> Parameters(const std::string& prefix, int layer) const;
  // The encoder of a stage, and its trained parameters.
  std::shared_ptr<PromptEncoder> Attach(const AttachOptions& options, const std::string& prefix,
                                        int layer, std::vector<NamedParameter>* parameters) const;

  nlohmann::json Json() const;
  // Kind input when the folder's encoder is another one.
  absl::Status Check(const nlohmann::json& config, const std::string& origin) const;

 private:
  std::string type_ = "embedding_mean";
  PromptEncoderChoice choice_;
};

}  // namespace graft::adapters
