// LoPA (Jain et al., arXiv 2405.15282): a shared soft prompt gated by a low-rank matrix made from
// each sample's prompt text, Z = Z_S (.) sigmoid(u v^T) (methods.md 10).
#pragma once

#include <string>
#include <vector>

#include "adapters/adapter.h"
#include "adapters/prompt_encoder.h"
#include "adapters/soft_prompt.h"

namespace graft::adapters {

class Lopa : public Method {
 public:
  const char* name() const override { return "lopa"; }
  void VisitFields(FieldVisitor& visitor) override;
  bool reads_first_row() const override { return read_at_.is_first(); }
  int64_t virtual_rows() const override {
    return fusion_ == "concat" ? 2 * prompt_length_ : prompt_length_;
  }
  bool reads_prompt() const override { return true; }
  absl::Status Open(const ModelFacts& model) override { return encoder_.Open(model); }
  const PromptEncoderChoice* prompt_encoder() const override { return encoder_.model(); }
  // `embed`.
  absl::StatusOr<std::vector<models::SiteSpec>> MatchSites(
      const std::vector<models::SiteSpec>& model_sites) const override;
  // lopa.prompt (m, d), then lopa.row.* and lopa.col.* (tanh_head.h) for u (m, r) and v (d, r).
  std::vector<ParameterSpec> Parameters(
      const std::vector<models::SiteSpec>& matched) const override;
  absl::StatusOr<Attachment> Attach(const std::vector<models::SiteSpec>& matched_on_stage,
                                    const AttachOptions& options) const override;
  nlohmann::json PeftConfig(const std::vector<models::SiteSpec>& matched,
                            const PeftContext& context) const override;
  // Refuses another fusion or encoder: the tensors have the same shapes.
  absl::Status CheckPeftConfig(const nlohmann::json& config,
                               const std::string& origin) const override;

 private:
  int64_t prompt_length_ = 10;
  int64_t rank_ = 4;
  int64_t hidden_ = 256;
  std::string fusion_ = "gated";
  double dropout_ = 0.1;
  std::string init_ = "random";
  PromptEncoderField encoder_;
  ReadAtField read_at_;
};

}  // namespace graft::adapters
