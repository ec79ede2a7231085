// LoRA (Hu et al., arXiv 2106.09685): y = x W^T + b + s (D(x) A^T) B^T at linears, with s = alpha /
// rank, or alpha / sqrt(rank) for rslora (methods.md 3).
#pragma once

#include <string>
#include <vector>

#include "adapters/adapter.h"

namespace graft::adapters {

class Lora : public Method {
 public:
  const char* name() const override { return "lora"; }
  void VisitFields(FieldVisitor& visitor) override;
  // Linears only.
  absl::StatusOr<std::vector<models::SiteSpec>> MatchSites(
      const std::vector<models::SiteSpec>& model_sites) const override;
  // lora_A (r, in), lora_B (out, r) of each site.
  std::vector<ParameterSpec> Parameters(
      const std::vector<models::SiteSpec>& matched) const override;
  // A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0.
  absl::StatusOr<Attachment> Attach(const std::vector<models::SiteSpec>& matched_on_stage,
                                    const AttachOptions& options) const override;
  nlohmann::json PeftConfig(const std::vector<models::SiteSpec>& matched,
                            const PeftContext& context) const override;
  // Refuses another rank, alpha or rslora, and every variant of huggingface/peft's LoRA that
  // computes something else.
  absl::Status CheckPeftConfig(const nlohmann::json& config,
                               const std::string& origin) const override;
  // W + s B A.
  absl::Status Merge(const models::SiteSpec& site,
                     const std::vector<std::pair<std::string, torch::Tensor>>& tensors,
                     torch::Tensor* weight, torch::Tensor* bias) const override;

 private:
  double scale() const;

  std::vector<std::string> sites_ = {"attn.q", "attn.v"};
  int64_t rank_ = 8;
  double alpha_ = 16.0;
  double dropout_ = 0.0;
  bool rslora_ = false;
};

}  // namespace graft::adapters
