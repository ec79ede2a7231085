// IDPG, single layer (S-IDPG; Wu et al., arXiv 2204.04497): a small network makes each sample's
// soft prompt from a vector e of its prompt text, Z = reshape(tanh(D(e) W1^T + b1) W2^T + b2, (m,
// d)) (methods.md 9).
#pragma once

#include <string>
#include <vector>

#include "adapters/adapter.h"
#include "adapters/prompt_encoder.h"
#include "adapters/soft_prompt.h"
#include "adapters/tanh_head.h"

namespace graft::adapters {

class Idpg : public Method {
 public:
  const char* name() const override { return "idpg"; }
  void VisitFields(FieldVisitor& visitor) override;
  bool reads_first_row() const override { return read_at_.is_first(); }
  int64_t virtual_rows() const override { return prompt_length_; }
  bool reads_prompt() const override { return true; }
  absl::Status Open(const ModelFacts& model) override { return encoder_.Open(model); }
  const PromptEncoderChoice* prompt_encoder() const override { return encoder_.model(); }
  // `embed`.
  absl::StatusOr<std::vector<models::SiteSpec>> MatchSites(
      const std::vector<models::SiteSpec>& model_sites) const override;
  // idpg.0.weight (H, h), idpg.0.bias (H), idpg.2.weight (m d, H), idpg.2.bias (m d).
  std::vector<ParameterSpec> Parameters(
      const std::vector<models::SiteSpec>& matched) const override;
  // Weights ~ N(0, 0.02^2), b1 ~ U(-1/sqrt(h), 1/sqrt(h)), b2 = 0.
  absl::StatusOr<Attachment> Attach(const std::vector<models::SiteSpec>& matched_on_stage,
                                    const AttachOptions& options) const override;
  nlohmann::json PeftConfig(const std::vector<models::SiteSpec>& matched,
                            const PeftContext& context) const override;
  absl::Status CheckPeftConfig(const nlohmann::json& config,
                               const std::string& origin) const override;

 private:
  TanhHeadSpec Head(const models::SiteSpec& embed) const;

  int64_t prompt_length_ = 10;
  int64_t hidden_ = 256;
  double dropout_ = 0.1;
  PromptEncoderField encoder_;
  ReadAtField read_at_;
};

}  // namespace graft::adapters
