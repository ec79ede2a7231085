// Prompt tuning (Lester et al., arXiv 2104.08691): m trained rows stand in front of every sample's
// word embeddings (methods.md 7, 8).
#pragma once

#include <string>
#include <vector>

#include "adapters/adapter.h"
#include "adapters/soft_prompt.h"

namespace graft::adapters {

class PromptTuning : public Method {
 public:
  const char* name() const override { return "prompt_tuning"; }
  void VisitFields(FieldVisitor& visitor) override;
  const char* head_prefix() const override { return "base_model."; }
  bool reads_first_row() const override { return read_at_.is_first(); }
  int64_t virtual_rows() const override { return prompt_length_; }
  // `embed`.
  absl::StatusOr<std::vector<models::SiteSpec>> MatchSites(
      const std::vector<models::SiteSpec>& model_sites) const override;
  // prompt_embeddings (m, d).
  std::vector<ParameterSpec> Parameters(
      const std::vector<models::SiteSpec>& matched) const override;
  absl::StatusOr<Attachment> Attach(const std::vector<models::SiteSpec>& matched_on_stage,
                                    const AttachOptions& options) const override;
  nlohmann::json PeftConfig(const std::vector<models::SiteSpec>& matched,
                            const PeftContext& context) const override;
  absl::Status CheckPeftConfig(const nlohmann::json& config,
                               const std::string& origin) const override;
  // The encoder's rows: huggingface/peft's folders for encoder-decoder models may hold as many for
  // a decoder behind them, which its models never read.
  absl::StatusOr<std::vector<std::pair<std::string, torch::Tensor>>> FromFolder(
      const std::vector<models::SiteSpec>& matched, const nlohmann::json& config,
      std::vector<std::pair<std::string, torch::Tensor>> folder,
      const std::string& origin) const override;

 private:
  int64_t prompt_length_ = 10;
  std::string init_ = "random";
  ReadAtField read_at_ = {.value = "first"};  // as huggingface/peft
};

}  // namespace graft::adapters
