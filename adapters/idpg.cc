#include "adapters/idpg.h"

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "adapters/peft_config.h"
#include "adapters/tanh_head.h"
#include "base/status.h"

namespace graft::adapters {
namespace {

using models::SiteSpec;

TanhHeadSpec HeadOf(const SiteSpec& embed, int64_t hidden, int64_t rows) {
  return {.prefix = "idpg",
          .in = embed.out_features,
          .hidden = hidden,
          .out = rows * embed.out_features,
          .layer = embed.id.layer};
}

class IdpgHook : public models::SiteHook {
 public:
  IdpgHook(TanhHead head, int64_t rows) : head_(std::move(head)), rows_(rows) {}

  torch::Tensor EditOutput(const models::SiteInput& /*x*/, torch::Tensor y,
                           models::SiteContext& context) override {
    const std::vector<models::Segment> segments = SegmentsToFill(*context.batch);
    if (segments.empty()) return y;
    const torch::Tensor made = head_.Run(EncodePrompts(y, segments), segments, context);
    return FillVirtualRows(y, made.view({made.size(0), rows_, y.size(1)}), segments);
  }

 private:
  TanhHead head_;
  int64_t rows_;
};

}  // namespace

int64_t Idpg::HiddenOf(const SiteSpec& embed) const {
  return hidden_ == 0 ? embed.out_features : hidden_;
}

void Idpg::VisitFields(FieldVisitor& v) {
  v.Int({"prompt_length", "made rows in front of each sample's text"}, &prompt_length_, 1, 65536);
  v.Int({"hidden", "width of the generator; 0 = that of the encoder"}, &hidden_, 0, 1'000'000);
  v.Real({"dropout", "probability of dropping an input of the generator"}, &dropout_, 0.0, 0.99);
  encoder_.Visit(v);
  read_at_.Visit(v);
}

absl::StatusOr<std::vector<SiteSpec>> Idpg::MatchSites(
    const std::vector<SiteSpec>& model_sites) const {
  return EmbedSite(model_sites);
}

std::vector<ParameterSpec> Idpg::Parameters(const std::vector<SiteSpec>& matched) const {
  if (matched.empty()) return {};
  return TanhHeadParameters(HeadOf(matched[0], HiddenOf(matched[0]), prompt_length_));
}

absl::StatusOr<Attachment> Idpg::Attach(const std::vector<SiteSpec>& matched_on_stage,
                                        const AttachOptions& options) const {
  Attachment attachment;
  for (const SiteSpec& embed : matched_on_stage) {
    TanhHead head(HeadOf(embed, HiddenOf(embed), prompt_length_), options, dropout_);
    attachment.parameters = head.parameters();
    attachment.hooks.emplace_back(embed.id,
                                  std::make_shared<IdpgHook>(std::move(head), prompt_length_));
  }
  return attachment;
}

nlohmann::json Idpg::PeftConfig(const std::vector<SiteSpec>& /*matched*/,
                                const PeftContext& context) const {
  nlohmann::json config = CommonPeftConfig("IDPG", context);
  config["prompt_length"] = prompt_length_;
  config["hidden"] = hidden_;
  config["dropout"] = dropout_;
  config["encoder"] = {{"type", encoder_.type}};
  config["read_at"] = read_at_.value;
  return config;
}

absl::Status Idpg::CheckPeftConfig(const nlohmann::json& config, const std::string& origin) const {
  GRAFT_RETURN_IF_ERROR(CheckPeftType(config, "IDPG", name(), origin));
  GRAFT_RETURN_IF_ERROR(CheckPromptEncoder(config, encoder_, origin));
  return read_at_.Check(config, origin);
}

}  // namespace graft::adapters
