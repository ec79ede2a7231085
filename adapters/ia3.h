// IA3 (Liu et al., arXiv 2205.05638): one trained vector per linear. ffn.down scales its INPUT,
// y = (l (.) x) W^T + b; every other linear its OUTPUT after the bias, y = l (.) (x W^T + b)
// (methods.md 4). The worked example of docs/adding-an-adapter.md.
#pragma once

#include <string>
#include <vector>

#include "adapters/adapter.h"

namespace graft::adapters {

// adapter_config.json of an IA3 adapter at these sites; `feedforward`: the modules among them that
// it scales at their input.
nlohmann::json Ia3PeftConfig(const std::vector<models::SiteSpec>& matched,
                             const nlohmann::json& feedforward, const PeftContext& context);

class Ia3 : public Method {
 public:
  const char* name() const override { return "ia3"; }
  int64_t KeptPerRow(const models::SiteSpec& site) const override;
  void VisitFields(FieldVisitor& visitor) override;
  // Linears only.
  absl::StatusOr<std::vector<models::SiteSpec>> MatchSites(
      const std::vector<models::SiteSpec>& model_sites) const override;
  // ia3_l of each site: (1, in) at ffn.down, else (out, 1).
  std::vector<ParameterSpec> Parameters(
      const std::vector<models::SiteSpec>& matched) const override;
  // All ones.
  absl::StatusOr<Attachment> Attach(const std::vector<models::SiteSpec>& matched_on_stage,
                                    const AttachOptions& options) const override;
  nlohmann::json PeftConfig(const std::vector<models::SiteSpec>& matched,
                            const PeftContext& context) const override;
  // What scales what is in the shapes, which CheckAdapterTensors compares.
  absl::Status CheckPeftConfig(const nlohmann::json& config,
                               const std::string& origin) const override;
  // Of a shared module: one vector over all its outputs, 1 where no role is scaled.
  std::vector<std::pair<std::string, torch::Tensor>> ToFolder(
      const std::vector<models::SiteSpec>& matched,
      std::vector<std::pair<std::string, torch::Tensor>> parameters) const override;
  absl::StatusOr<std::vector<std::pair<std::string, torch::Tensor>>> FromFolder(
      const std::vector<models::SiteSpec>& matched, const nlohmann::json& config,
      std::vector<std::pair<std::string, torch::Tensor>> folder,
      const std::string& origin) const override;
  // Rows of W and b times l; at ffn.down columns of W.
  absl::Status Merge(const models::SiteSpec& site,
                     const std::vector<std::pair<std::string, torch::Tensor>>& tensors,
                     torch::Tensor* weight, torch::Tensor* bias) const override;

 private:
  std::vector<std::string> sites_ = {"attn.k", "attn.v", "ffn.down"};
};

}  // namespace graft::adapters
