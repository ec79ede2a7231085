#include "adapters/idpg.h"

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "adapters/peft_config.h"
#include "adapters/tanh_head.h"
#include "base/status.h"

namespace graft::adapters {
namespace {

using models::SiteSpec;

TanhHeadSpec HeadOf(const SiteSpec& embed, int64_t in, int64_t hidden, int64_t rows) {
  return {.prefix = "idpg",
          .in = in,
          .hidden = hidden,
          .out = rows * embed.out_features,
          .layer = embed.id.layer};
}

class IdpgHook : public models::SiteHook {
 public:
  IdpgHook(TanhHead head, std::shared_ptr<PromptEncoder> encoder, int64_t rows)
      : head_(std::move(head)), encoder_(std::move(encoder)), rows_(rows) {}

  torch::Tensor EditOutput(const models::SiteInput& /*x*/, torch::Tensor y,
                           models::SiteContext& context) override {
    const std::vector<models::Segment> segments = SegmentsToFill(*context.batch);
    if (segments.empty()) return y;
    const torch::Tensor made =
        head_.Run(encoder_->Encode(y, *context.batch, segments), segments, context);
    return FillVirtualRows(y, made.view({made.size(0), rows_, y.size(1)}), segments);
  }
  models::RowEdit EditOfRow() const override { return {.kind = models::RowEdit::Kind::kNothing}; }

 private:
  TanhHead head_;
  std::shared_ptr<PromptEncoder> encoder_;
  int64_t rows_;
};

}  // namespace

TanhHeadSpec Idpg::Head(const SiteSpec& embed) const {
  const int64_t width = encoder_.WidthFor(embed.out_features);
  return HeadOf(embed, width, hidden_ == 0 ? width : hidden_, prompt_length_);
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
  std::vector<ParameterSpec> parameters = TanhHeadParameters(Head(matched[0]));
  for (ParameterSpec& weight : encoder_.Parameters(name(), matched[0].id.layer)) {
    parameters.push_back(std::move(weight));
  }
  return parameters;
}

absl::StatusOr<Attachment> Idpg::Attach(const std::vector<SiteSpec>& matched_on_stage,
                                        const AttachOptions& options) const {
  Attachment attachment;
  for (const SiteSpec& embed : matched_on_stage) {
    TanhHead head(Head(embed), options, dropout_);
    attachment.parameters = head.parameters();
    auto encoder = encoder_.Attach(options, name(), embed.id.layer, &attachment.parameters);
    attachment.hooks.emplace_back(
        embed.id, std::make_shared<IdpgHook>(std::move(head), std::move(encoder), prompt_length_));
  }
  return attachment;
}

nlohmann::json Idpg::PeftConfig(const std::vector<SiteSpec>& /*matched*/,
                                const PeftContext& context) const {
  nlohmann::json config = CommonPeftConfig("IDPG", context);
  config["prompt_length"] = prompt_length_;
  config["hidden"] = hidden_;
  config["dropout"] = dropout_;
  config["encoder"] = encoder_.Json();
  config["read_at"] = read_at_.value;
  return config;
}

absl::Status Idpg::CheckPeftConfig(const nlohmann::json& config, const std::string& origin) const {
  GRAFT_RETURN_IF_ERROR(CheckPeftType(config, "IDPG", name(), origin));
  GRAFT_RETURN_IF_ERROR(encoder_.Check(config, origin));
  return read_at_.Check(config, origin);
}

}  // namespace graft::adapters
