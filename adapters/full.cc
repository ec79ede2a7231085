#include "adapters/full.h"

#include <map>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::adapters {

absl::Status Full::Open(const ModelFacts& model) {
  weights_ = model.weights;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<models::SiteSpec>> Full::MatchSites(
    const std::vector<models::SiteSpec>& /*model_sites*/) const {
  return std::vector<models::SiteSpec>();
}

std::vector<ParameterSpec> Full::Parameters(
    const std::vector<models::SiteSpec>& /*matched*/) const {
  return weights_;
}

absl::StatusOr<Attachment> Full::Attach(const std::vector<models::SiteSpec>& /*matched_on_stage*/,
                                        const AttachOptions& options) const {
  const std::map<std::string, torch::Tensor> leaves(options.trained_weights.begin(),
                                                    options.trained_weights.end());
  Attachment attachment;
  for (const ParameterSpec& weight : weights_) {
    const auto found = leaves.find(weight.name);
    if (found == leaves.end()) continue;
    attachment.parameters.push_back({weight.name, found->second, weight.layer});
  }
  return attachment;
}

nlohmann::json Full::PeftConfig(const std::vector<models::SiteSpec>& /*matched*/,
                                const PeftContext& /*context*/) const {
  return nlohmann::json();
}

absl::Status Full::CheckPeftConfig(const nlohmann::json& /*config*/,
                                   const std::string& origin) const {
  return InputError(absl::StrCat(
      origin, ": is an adapter; method full starts from model.path and leaves a model folder"));
}

}  // namespace graft::adapters
