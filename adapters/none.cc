#include "adapters/none.h"

#include "adapters/peft_config.h"

namespace graft::adapters {

absl::StatusOr<std::vector<models::SiteSpec>> None::MatchSites(
    const std::vector<models::SiteSpec>& /*model_sites*/) const {
  return std::vector<models::SiteSpec>();
}

std::vector<ParameterSpec> None::Parameters(
    const std::vector<models::SiteSpec>& /*matched*/) const {
  return {};
}

absl::StatusOr<Attachment> None::Attach(const std::vector<models::SiteSpec>& /*matched_on_stage*/,
                                        const AttachOptions& /*options*/) const {
  return Attachment();
}

nlohmann::json None::PeftConfig(const std::vector<models::SiteSpec>& /*matched*/,
                                const PeftContext& context) const {
  return CommonPeftConfig("NONE", context);
}

absl::Status None::CheckPeftConfig(const nlohmann::json& config, const std::string& origin) const {
  return CheckPeftType(config, "NONE", name(), origin);
}

}  // namespace graft::adapters
