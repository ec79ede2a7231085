// Method `none`: no parameters, for evaluating and running the bare backbone (methods.md 11).
#pragma once

#include "adapters/adapter.h"

namespace graft::adapters {

class None : public Method {
 public:
  const char* name() const override { return "none"; }
  void VisitFields(FieldVisitor& /*visitor*/) override {}
  // No site.
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
};

}  // namespace graft::adapters
