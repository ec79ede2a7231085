#include "adapters/lopa.h"

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "adapters/peft_config.h"
#include "adapters/tanh_head.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::adapters {
namespace {

using models::SiteSpec;

constexpr const char* kPromptName = "lopa.prompt";

struct Heads {
  TanhHeadSpec row, column;
};

// Init order: prompt, row, column.
Heads HeadsOf(const SiteSpec& embed, int64_t in, int64_t hidden, int64_t rows, int64_t rank) {
  const int64_t width = embed.out_features, inner = hidden == 0 ? in : hidden;
  return {{.prefix = "lopa.row",
           .site = kGeneratorSite,
           .first_tensor = 1,
           .in = in,
           .hidden = inner,
           .out = rows * rank,
           .layer = embed.id.layer},
          {.prefix = "lopa.col",
           .site = kColumnGeneratorSite,
           .first_tensor = 5,
           .in = in,
           .hidden = inner,
           .out = width * rank,
           .layer = embed.id.layer}};
}

// Z (K, M, D) from the shared prompt (M, D) and Z_I (K, M, D).
torch::Tensor Fuse(const std::string& fusion, const torch::Tensor& shared,
                   const torch::Tensor& made) {
  if (fusion == "gated") return shared * at::sigmoid(made);
  const torch::Tensor repeated = shared.unsqueeze(0).expand_as(made);
  if (fusion == "add") return repeated + made;
  if (fusion == "max") return at::where(repeated >= made, repeated, made);
  return at::cat({repeated, made}, 1);
}

class LopaHook : public models::SiteHook {
 public:
  LopaHook(torch::Tensor prompt, std::shared_ptr<PromptEncoder> encoder, TanhHead row,
           TanhHead column, int64_t rank, std::string fusion)
      : prompt_(std::move(prompt)),
        encoder_(std::move(encoder)),
        row_(std::move(row)),
        column_(std::move(column)),
        rank_(rank),
        fusion_(std::move(fusion)) {}

  torch::Tensor EditOutput(const models::SiteInput& /*x*/, torch::Tensor y,
                           models::SiteContext& context) override {
    const std::vector<models::Segment> segments = SegmentsToFill(*context.batch);
    if (segments.empty()) return y;
    const torch::Tensor e = encoder_->Encode(y, *context.batch, segments);
    const torch::Tensor u = row_.Run(e, segments, context).view({e.size(0), -1, rank_});
    const torch::Tensor v = column_.Run(e, segments, context).view({e.size(0), -1, rank_});
    return FillVirtualRows(y, Fuse(fusion_, prompt_, at::bmm(u, v.transpose(1, 2))), segments);
  }
  models::RowEdit EditOfRow() const override { return {.kind = models::RowEdit::Kind::kNothing}; }

 private:
  torch::Tensor prompt_;  // (M, D)
  std::shared_ptr<PromptEncoder> encoder_;
  TanhHead row_, column_;
  int64_t rank_;
  std::string fusion_;
};

}  // namespace

void Lopa::VisitFields(FieldVisitor& v) {
  v.Int({"prompt_length", "rows of the shared prompt"}, &prompt_length_, 1, 65536);
  v.Int({"rank", "rank of the matrix that a sample's prompt makes"}, &rank_, 1, 65536);
  v.Int({"hidden", "width of both generators; 0 = that of the encoder"}, &hidden_, 0, 1'000'000);
  v.Text({"fusion",
          "gated = shared (.) sigmoid(made); concat puts twice prompt_length rows; add; max"},
         &fusion_, {"gated", "concat", "add", "max"});
  v.Real({"dropout", "probability of dropping an input of a generator"}, &dropout_, 0.0, 0.99);
  v.Text({"init", "of the shared prompt: random = N(0, 1); vocab = embeddings of random tokens"},
         &init_, {"random", "vocab"});
  encoder_.Visit(v);
  read_at_.Visit(v);
}

absl::StatusOr<std::vector<SiteSpec>> Lopa::MatchSites(
    const std::vector<SiteSpec>& model_sites) const {
  return EmbedSite(model_sites);
}

std::vector<ParameterSpec> Lopa::Parameters(const std::vector<SiteSpec>& matched) const {
  if (matched.empty()) return {};
  const SiteSpec& embed = matched[0];
  std::vector<ParameterSpec> parameters = {
      {kPromptName, {prompt_length_, embed.out_features}, embed.id.layer}};
  const Heads heads =
      HeadsOf(embed, encoder_.WidthFor(embed.out_features), hidden_, prompt_length_, rank_);
  for (const TanhHeadSpec& head : {heads.row, heads.column}) {
    for (ParameterSpec& parameter : TanhHeadParameters(head)) {
      parameters.push_back(std::move(parameter));
    }
  }
  for (ParameterSpec& weight : encoder_.Parameters(name(), embed.id.layer)) {
    parameters.push_back(std::move(weight));
  }
  return parameters;
}

absl::StatusOr<Attachment> Lopa::Attach(const std::vector<SiteSpec>& matched_on_stage,
                                        const AttachOptions& options) const {
  Attachment attachment;
  for (const SiteSpec& embed : matched_on_stage) {
    const torch::Tensor prompt = InitialPrompt(options, embed, prompt_length_, init_ == "vocab");
    attachment.parameters.push_back({kPromptName, prompt, embed.id.layer});
    const Heads specs =
        HeadsOf(embed, encoder_.WidthFor(embed.out_features), hidden_, prompt_length_, rank_);
    TanhHead row(specs.row, options, dropout_), column(specs.column, options, dropout_);
    for (const TanhHead* head : {&row, &column}) {
      attachment.parameters.insert(attachment.parameters.end(), head->parameters().begin(),
                                   head->parameters().end());
    }
    auto encoder = encoder_.Attach(options, name(), embed.id.layer, &attachment.parameters);
    attachment.hooks.emplace_back(
        embed.id, std::make_shared<LopaHook>(prompt, std::move(encoder), std::move(row),
                                             std::move(column), rank_, fusion_));
  }
  return attachment;
}

nlohmann::json Lopa::PeftConfig(const std::vector<SiteSpec>& /*matched*/,
                                const PeftContext& context) const {
  nlohmann::json config = CommonPeftConfig("LOPA", context);
  config["prompt_length"] = prompt_length_;
  config["rank"] = rank_;
  config["hidden"] = hidden_;
  config["fusion"] = fusion_;
  config["dropout"] = dropout_;
  config["init"] = init_;
  config["encoder"] = encoder_.Json();
  config["read_at"] = read_at_.value;
  return config;
}

absl::Status Lopa::CheckPeftConfig(const nlohmann::json& config, const std::string& origin) const {
  GRAFT_RETURN_IF_ERROR(CheckPeftType(config, "LOPA", name(), origin));
  GRAFT_RETURN_IF_ERROR(encoder_.Check(config, origin));
  GRAFT_RETURN_IF_ERROR(read_at_.Check(config, origin));
  return CheckSameText(config, "fusion", fusion_, origin);
}

}  // namespace graft::adapters
