// RED (Wu et al., arXiv 2402.15179): h' = s (.) h + beta at hidden states or linear outputs, for
// every position (methods.md 5).
#pragma once

#include <string>
#include <vector>

#include "adapters/adapter.h"
#include "adapters/fused_sites.h"

namespace graft::adapters {

class Red : public Method {
 public:
  const char* name() const override { return "red"; }
  // A scale keeps what it scales.
  int64_t KeptPerRow(const models::SiteSpec& site) const override {
    return has_scale() ? site.out_features : 0;
  }
  void VisitFields(FieldVisitor& visitor) override;
  // Linears, attn.out, ffn.out, layer.out. Error kind recipe also when two sites are one place
  // (ffn.out and ffn.down).
  absl::StatusOr<std::vector<models::SiteSpec>> MatchSites(
      const std::vector<models::SiteSpec>& model_sites) const override;
  // red_scale (width), red_bias (width) of each site, those that `what` names.
  std::vector<ParameterSpec> Parameters(
      const std::vector<models::SiteSpec>& matched) const override;
  // s = 1, beta = 0.
  absl::StatusOr<Attachment> Attach(const std::vector<models::SiteSpec>& matched_on_stage,
                                    const AttachOptions& options) const override;
  nlohmann::json PeftConfig(const std::vector<models::SiteSpec>& matched,
                            const PeftContext& context) const override;
  // Refuses a folder whose `what` differs.
  absl::Status CheckPeftConfig(const nlohmann::json& config,
                               const std::string& origin) const override;
  // Of a shared module: one vector over all its outputs, 1 and 0 where no role is edited.
  std::vector<std::pair<std::string, torch::Tensor>> ToFolder(
      const std::vector<models::SiteSpec>& matched,
      std::vector<std::pair<std::string, torch::Tensor>> parameters) const override;
  absl::StatusOr<std::vector<std::pair<std::string, torch::Tensor>>> FromFolder(
      const std::vector<models::SiteSpec>& matched, const nlohmann::json& config,
      std::vector<std::pair<std::string, torch::Tensor>> folder,
      const std::string& origin) const override;
  // W' = diag(s) W, b' = s (.) b + beta. layer.out does not merge.
  // what: scale as IA3 without feed-forward modules, bias as BEFT (methods.md 6); not at layer.out.
  absl::StatusOr<FolderContent> AsPeft(
      const std::vector<models::SiteSpec>& matched, const PeftContext& context,
      std::vector<std::pair<std::string, torch::Tensor>> parameters) const override;
  absl::Status Merge(const models::SiteSpec& site,
                     const std::vector<std::pair<std::string, torch::Tensor>>& tensors,
                     torch::Tensor* weight, torch::Tensor* bias) const override;
  bool MergeAddsBias(const models::SiteSpec& site) const override;

 private:
  absl::Status CheckFitsPeft(const std::vector<models::SiteSpec>& matched) const;
  std::vector<FusedVector> FusedVectors() const;
  bool has_scale() const { return what_ != "bias"; }
  bool has_bias() const { return what_ != "scale"; }

  std::string what_ = "scale_and_bias";
  std::vector<std::string> sites_ = {"ffn.out"};
};

}  // namespace graft::adapters
