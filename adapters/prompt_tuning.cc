#include "adapters/prompt_tuning.h"

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "adapters/peft_config.h"
#include "base/json.h"
#include "base/status.h"

namespace graft::adapters {
namespace {

using models::SiteSpec;

constexpr const char* kPromptName = "prompt_embeddings";

class PromptTuningHook : public models::SiteHook {
 public:
  explicit PromptTuningHook(torch::Tensor prompt) : prompt_(std::move(prompt)) {}

  torch::Tensor EditOutput(const models::SiteInput& /*x*/, torch::Tensor y,
                           models::SiteContext& context) override {
    const std::vector<models::Segment> segments = SegmentsToFill(*context.batch);
    return segments.empty() ? y : FillVirtualRows(y, prompt_.unsqueeze(0), segments);
  }
  models::RowEdit EditOfRow() const override { return {.kind = models::RowEdit::Kind::kNothing}; }

 private:
  torch::Tensor prompt_;  // (M, D)
};

}  // namespace

void PromptTuning::VisitFields(FieldVisitor& v) {
  v.Int({"prompt_length", "trained rows in front of each sample's text"}, &prompt_length_, 1,
        65536);
  v.Text({"init", "random = N(0, 1); vocab = embeddings of random tokens"}, &init_,
         {"random", "vocab"});
  read_at_.Visit(v);
}

absl::StatusOr<std::vector<SiteSpec>> PromptTuning::MatchSites(
    const std::vector<SiteSpec>& model_sites) const {
  return EmbedSite(model_sites);
}

std::vector<ParameterSpec> PromptTuning::Parameters(const std::vector<SiteSpec>& matched) const {
  if (matched.empty()) return {};
  return {{kPromptName, {prompt_length_, matched[0].out_features}, matched[0].id.layer}};
}

absl::StatusOr<Attachment> PromptTuning::Attach(const std::vector<SiteSpec>& matched_on_stage,
                                                const AttachOptions& options) const {
  Attachment attachment;
  for (const SiteSpec& embed : matched_on_stage) {
    torch::Tensor prompt = InitialPrompt(options, embed, prompt_length_, init_ == "vocab");
    attachment.parameters.push_back({kPromptName, prompt, embed.id.layer});
    attachment.hooks.emplace_back(embed.id, std::make_shared<PromptTuningHook>(prompt));
  }
  return attachment;
}

nlohmann::json PromptTuning::PeftConfig(const std::vector<SiteSpec>& matched,
                                        const PeftContext& context) const {
  nlohmann::json config = CommonPeftConfig("PROMPT_TUNING", context);
  config["modules_to_save"] = nullptr;
  config["num_attention_heads"] = nullptr;  // huggingface/peft reads both from the model
  config["num_layers"] = nullptr;
  // Written explicitly: huggingface/peft's default for seq2seq is 2 and leaves the second half
  // unused (methods.md 8).
  config["num_transformer_submodules"] = 1;
  config["num_virtual_tokens"] = prompt_length_;
  config["prompt_tuning_init"] = "RANDOM";
  config["prompt_tuning_init_text"] = nullptr;
  config["token_dim"] = matched.empty() ? 0 : matched[0].out_features;
  config["tokenizer_kwargs"] = nullptr;
  config["tokenizer_name_or_path"] = nullptr;
  return config;
}

absl::Status PromptTuning::CheckPeftConfig(const nlohmann::json& config,
                                           const std::string& origin) const {
  GRAFT_RETURN_IF_ERROR(CheckPeftType(config, "PROMPT_TUNING", name(), origin));
  GRAFT_ASSIGN_OR_RETURN(const int64_t rows,
                         GetInt(config, "num_virtual_tokens", 1, 1'000'000, origin));
  if (rows == prompt_length_) return absl::OkStatus();
  return InputError(absl::StrCat(origin, ": num_virtual_tokens is ", rows,
                                 ", but adapter.prompt_length is ", prompt_length_));
}

absl::StatusOr<std::vector<std::pair<std::string, torch::Tensor>>> PromptTuning::FromFolder(
    const std::vector<SiteSpec>& /*matched*/, const nlohmann::json& config,
    std::vector<std::pair<std::string, torch::Tensor>> folder, const std::string& origin) const {
  GRAFT_ASSIGN_OR_RETURN(const int64_t submodules,
                         GetIntOr(config, "num_transformer_submodules", 1, 1, 2, origin));
  if (submodules == 1) return folder;
  for (auto& [name, value] : folder) {
    if (name == kPromptName && value.dim() == 2 && value.size(0) == submodules * prompt_length_) {
      value = value.narrow(0, 0, prompt_length_).contiguous();
    }
  }
  return folder;
}

}  // namespace graft::adapters
