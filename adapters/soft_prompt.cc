#include "adapters/soft_prompt.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "absl/strings/str_cat.h"
#include "adapters/generator.h"
#include "adapters/peft_config.h"
#include "base/json.h"
#include "base/philox.h"
#include "base/status.h"

namespace graft::adapters {
namespace {

using models::Segment;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct FillCall : torch::CustomClassHolder {
  explicit FillCall(std::vector<Segment> filled) : segments(std::move(filled)) {}
  torch::Tensor RowsOf(const torch::Tensor& h, size_t k) const {
    return h.narrow(0, segments[k].begin, segments[k].virtual_rows);
  }
  std::vector<Segment> segments;
};

class FillFunction : public torch::autograd::Function<FillFunction> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& h, const torch::Tensor& z,
                               const c10::intrusive_ptr<FillCall>& call) {
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    ctx->saved_data["shared"] = z.size(0) == 1;
    torch::Tensor filled = h.clone(at::MemoryFormat::Contiguous);
    for (size_t k = 0; k < call->segments.size(); ++k) {
      call->RowsOf(filled, k).copy_(z[z.size(0) == 1 ? 0 : static_cast<int64_t>(k)]);
    }
    return filled;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto holder = ctx->saved_data.at("call").toCapsule();
    const auto& call = static_cast<const FillCall&>(*holder);
    const torch::Tensor& g = gradients[0];
    torch::Tensor dz, dh;
    if (ctx->needs_input_grad(1)) {
      const auto wide = at::promote_types(at::kFloat, g.scalar_type());
      std::vector<torch::Tensor> rows;
      for (size_t k = 0; k < call.segments.size(); ++k) rows.push_back(call.RowsOf(g, k).to(wide));
      dz = at::stack(rows);
      if (ctx->saved_data.at("shared").toBool()) dz = dz.sum(0, /*keepdim=*/true);
    }
    if (ctx->needs_input_grad(0)) {
      dh = g.clone();
      for (size_t k = 0; k < call.segments.size(); ++k) call.RowsOf(dh, k).zero_();
    }
    return {dh, dz, torch::Tensor()};
  }
};

}  // namespace

std::vector<Segment> SegmentsToFill(const models::MicroBatch& batch) {
  std::vector<Segment> segments;
  std::copy_if(batch.segments.begin(), batch.segments.end(), std::back_inserter(segments),
               [](const Segment& segment) { return segment.virtual_rows > 0; });
  return segments;
}

torch::Tensor FillVirtualRows(const torch::Tensor& h, const torch::Tensor& z,
                              const std::vector<Segment>& segments) {
  for (const Segment& segment : segments) {
    GRAFT_CHECK(segment.virtual_rows == z.size(1),
                absl::StrCat("sample ", segment.sample_id, " has ", segment.virtual_rows,
                             " virtual rows, the soft prompt ", z.size(1)));
  }
  return FillFunction::apply(h, z, c10::make_intrusive<FillCall>(segments));
}

absl::StatusOr<std::vector<models::SiteSpec>> EmbedSite(
    const std::vector<models::SiteSpec>& model_sites) {
  for (const models::SiteSpec& site : model_sites) {
    if (site.id.role == models::Role::kEmbed) return std::vector<models::SiteSpec>{site};
  }
  return RecipeError("adapter.method: the model has no `embed` site for a soft prompt");
}

torch::Tensor InitialPrompt(const AttachOptions& options, const models::SiteSpec& embed,
                            int64_t num_rows, bool from_vocab) {
  if (!from_vocab) {
    return GeneratorInit(options, embed.id.layer, kSoftPromptSite)
        .Normal(/*tensor_number=*/0, {num_rows, embed.out_features}, 1.0);
  }
  const uint64_t key =
      PhiloxKey(options.seed, RandomPurpose::kInit, 0, static_cast<uint64_t>(embed.id.layer),
                static_cast<uint64_t>(kSoftPromptSite));
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < num_rows; ++i) {
    const PhiloxBlock draw =
        Philox(key, {static_cast<uint32_t>(i / 4), static_cast<uint32_t>((i / 4) >> 32), 0, 0});
    ids.push_back(static_cast<int64_t>(PhiloxUniform(draw[static_cast<size_t>(i % 4)]) *
                                       static_cast<double>(options.vocab_size)));
  }
  return options.word_embeddings(ids)
      .to(options.device, at::kFloat, /*non_blocking=*/false, /*copy=*/true)
      .requires_grad_();
}

void ReadAtField::Visit(FieldVisitor& v) {
  v.Text({"read_at",
          "row that the task head of an encoder (RoBERTa) reads: text = the text's first token, "
          "first = the first row of the soft prompt; a decoder's head reads the last token"},
         &value, {"text", "first"});
}

absl::Status ReadAtField::Check(const nlohmann::json& config, const std::string& origin) const {
  nlohmann::json resolved = config;
  resolved.emplace("read_at", "text");
  return CheckSameText(resolved, "read_at", value, origin);
}

}  // namespace graft::adapters
