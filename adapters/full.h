// Method `full`: full fine-tuning of every weight of the backbone (methods.md 11). Its parameters
// are the backbone's own float32 leaves, by HF name; what is trained is a model, not an adapter.
#pragma once

#include "adapters/adapter.h"

namespace graft::adapters {

class Full : public Method {
 public:
  const char* name() const override { return "full"; }
  void VisitFields(FieldVisitor& /*visitor*/) override {}
  absl::Status Open(const ModelFacts& model) override;
  bool trains_backbone() const override { return true; }
  const char* head_prefix() const override { return ""; }
  // No site: the weights are the layers', nothing is hung into them.
  absl::StatusOr<std::vector<models::SiteSpec>> MatchSites(
      const std::vector<models::SiteSpec>& model_sites) const override;
  std::vector<ParameterSpec> Parameters(
      const std::vector<models::SiteSpec>& matched) const override;
  absl::StatusOr<Attachment> Attach(const std::vector<models::SiteSpec>& matched_on_stage,
                                    const AttachOptions& options) const override;
  nlohmann::json PeftConfig(const std::vector<models::SiteSpec>& matched,
                            const PeftContext& context) const override;
  absl::Status CheckPeftConfig(const nlohmann::json& config,
                               const std::string& origin) const override;

 private:
  std::vector<ParameterSpec> weights_;  // of the whole model
};

}  // namespace graft::adapters
