// LoRA (Hu et al., arXiv 2106.09685): y = x W^T + b + s (D(x) A^T) B^T at linears, with s = alpha /
// rank, or alpha / sqrt(rank) for rslora (methods.md 3). Method fanlora is the same with ranks and
// alphas that differ (fanlora.h).
#pragma once

#include <string>
#include <vector>

#include "adapters/adapter.h"
#include "adapters/lora_fused.h"

namespace graft::adapters {

class Lora : public Method {
 public:
  const char* name() const override { return "lora"; }
  int64_t KeptPerRow(const models::SiteSpec& site) const override { return SizeOf(site).rank; }
  void VisitFields(FieldVisitor& visitor) override;
  // Linears only.
  absl::StatusOr<std::vector<models::SiteSpec>> MatchSites(
      const std::vector<models::SiteSpec>& model_sites) const override;
  // lora_A (r, in), lora_B (out, r) of each site; with `fused: joint` one pair for a shared module.
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
  // A shared module stands in the folder as one LoRA (lora_fused.h).
  std::vector<std::pair<std::string, torch::Tensor>> ToFolder(
      const std::vector<models::SiteSpec>& matched,
      std::vector<std::pair<std::string, torch::Tensor>> parameters) const override;
  // Refuses ranks and alphas of single modules, other than those of shared ones.
  absl::StatusOr<std::vector<std::pair<std::string, torch::Tensor>>> FromFolder(
      const std::vector<models::SiteSpec>& matched, const nlohmann::json& config,
      std::vector<std::pair<std::string, torch::Tensor>> folder,
      const std::string& origin) const override;
  absl::StatusOr<LowRankEdit> LowRankAt(
      const models::SiteSpec& site,
      const std::vector<std::pair<std::string, torch::Tensor>>& parameters) const override;
  // W + s B A.
  absl::Status Merge(const models::SiteSpec& site,
                     const std::vector<std::pair<std::string, torch::Tensor>>& tensors,
                     torch::Tensor* weight, torch::Tensor* bias) const override;

 protected:
  struct Size {
    int64_t rank = 8;
    double alpha = 16.0;
    friend bool operator==(const Size&, const Size&) = default;
  };
  // Of one matched site; the roles of a shared module have the same.
  virtual Size SizeOf(const models::SiteSpec& /*site*/) const { return size_; }
  // Keys that every LoRA has, beside sites and sizes.
  void VisitTrainingFields(FieldVisitor& visitor);
  // The part of CheckPeftConfig that is not about ranks and alphas.
  absl::Status CheckVariant(const nlohmann::json& config, const std::string& origin) const;
  // Cuts what the folder has of shared modules into the roles' own parameters.
  absl::StatusOr<std::vector<std::pair<std::string, torch::Tensor>>> CutShared(
      const std::vector<models::SiteSpec>& matched,
      std::vector<std::pair<std::string, torch::Tensor>> folder, const std::string& origin) const;
  // r and lora_alpha of the folder, and what modules have instead.
  virtual Size CommonSize(const std::vector<models::SiteSpec>& /*matched*/) const { return size_; }
  virtual LoraPatterns Patterns(const std::vector<models::SiteSpec>& matched) const;
  bool rslora() const { return rslora_; }

 private:
  double ScaleOf(const Size& size) const;
  bool IsJoint(const models::SiteSpec& site) const;
  std::string NameOf(const models::SiteSpec& site, const std::string& suffix) const;

  std::vector<std::string> sites_ = {"attn.q", "attn.v"};
  Size size_;
  double dropout_ = 0.0;
  bool rslora_ = false;
  std::string fused_ = "split";
};

}  // namespace graft::adapters
