#include "adapters/prompt_pool.h"

#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace graft::adapters {
namespace {

using models::Segment;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct PoolCall : torch::CustomClassHolder {
  std::vector<Segment> segments;
  Pooling pooling = Pooling::kMean;
  std::shared_ptr<models::Rebuilder> rebuilder;
  at::ScalarType type = at::kFloat;  // of x
  int64_t num_rows = 0;
  torch::Tensor places;  // kMax: (S, D) row inside the prompt that gave the maximum
};

torch::Tensor PromptRows(const torch::Tensor& x, const Segment& segment) {
  return x.narrow(0, segment.prompt_begin(), segment.prompt_length);
}

torch::Tensor Widened(const torch::Tensor& x) {
  return x.to(at::promote_types(at::kFloat, x.scalar_type()));
}

// softmax_t(<w, x_t> / sqrt(D)) of one prompt, (n).
torch::Tensor AttentionOf(const torch::Tensor& rows, const torch::Tensor& weight) {
  return at::softmax(at::mv(rows, weight) / std::sqrt(static_cast<double>(rows.size(1))), 0);
}

torch::Tensor PoolOne(const torch::Tensor& rows, const torch::Tensor& weight, Pooling pooling,
                      torch::Tensor place) {
  switch (pooling) {
    case Pooling::kMean:
      return rows.mean(0);
    case Pooling::kLast:
      return rows[rows.size(0) - 1];
    case Pooling::kMax: {
      auto [values, indices] = rows.max(0);
      place.copy_(indices);
      return values;
    }
    default:
      return at::mv(rows.t(), AttentionOf(rows, weight));
  }
}

// The gradient of one prompt's rows (n, D) from that of its pooled vector; adds to *dweight.
torch::Tensor AttentionBackward(const torch::Tensor& rows, const torch::Tensor& weight,
                                const torch::Tensor& g, torch::Tensor* dweight) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(rows.size(1)));
  const torch::Tensor a = AttentionOf(rows, weight);
  const torch::Tensor da = at::mv(rows, g);
  const torch::Tensor dscore = a * (da - at::dot(a, da)) * scale;
  *dweight += at::mv(rows.t(), dscore);
  return at::outer(a, g) + at::outer(dscore, weight);
}

class PoolFunction : public torch::autograd::Function<PoolFunction> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& x,
                               const std::optional<torch::Tensor>& weight,
                               const c10::intrusive_ptr<PoolCall>& call) {
    const torch::Tensor w = weight.value_or(torch::Tensor());
    const auto num_segments = static_cast<int64_t>(call->segments.size());
    torch::Tensor pooled =
        at::zeros({num_segments, x.size(1)},
                  x.options().dtype(at::promote_types(at::kFloat, x.scalar_type())));
    if (call->pooling == Pooling::kMax) {
      call->places = at::zeros({num_segments, x.size(1)}, x.options().dtype(at::kLong));
    }
    for (int64_t s = 0; s < num_segments; ++s) {
      const Segment& segment = call->segments[static_cast<size_t>(s)];
      if (segment.prompt_length == 0) continue;
      pooled[s].copy_(PoolOne(Widened(PromptRows(x, segment)), w, call->pooling,
                              call->places.defined() ? call->places[s] : torch::Tensor()));
    }
    call->type = x.scalar_type();
    call->num_rows = x.size(0);
    if (call->pooling == Pooling::kAttention) {
      ctx->save_for_backward(call->rebuilder ? variable_list{w} : variable_list{w, x});
    }
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return pooled;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto holder = ctx->saved_data.at("call").toCapsule();
    auto& call = static_cast<PoolCall&>(*holder);
    const torch::Tensor& g = gradients[0];
    const variable_list saved = ctx->get_saved_variables();
    torch::Tensor x, w, dweight;
    if (call.pooling == Pooling::kAttention) {
      w = saved[0];
      x = call.rebuilder ? call.rebuilder->Get() : saved[1];
      dweight = at::zeros_like(w);
    } else if (!ctx->needs_input_grad(0)) {
      return {torch::Tensor(), torch::Tensor(), torch::Tensor()};
    }
    torch::Tensor dx = at::zeros({call.num_rows, g.size(1)}, g.options().dtype(call.type));
    for (size_t s = 0; s < call.segments.size(); ++s) {
      const Segment& segment = call.segments[s];
      if (segment.prompt_length == 0) continue;
      torch::Tensor rows = PromptRows(dx, segment);
      const torch::Tensor gs = g[static_cast<int64_t>(s)];
      switch (call.pooling) {
        case Pooling::kMean:
          rows.copy_(gs / static_cast<double>(segment.prompt_length));
          break;
        case Pooling::kLast:
          rows[segment.prompt_length - 1].copy_(gs);
          break;
        case Pooling::kMax:
          rows.scatter_(0, call.places[static_cast<int64_t>(s)].unsqueeze(0),
                        gs.unsqueeze(0).to(call.type));
          break;
        default:
          rows.copy_(AttentionBackward(Widened(PromptRows(x, segment)), w, gs, &dweight));
      }
    }
    return {dx, dweight, torch::Tensor()};
  }
};

}  // namespace

torch::Tensor PoolPrompts(const models::SiteInput& x, const std::vector<Segment>& segments,
                          Pooling pooling, const torch::Tensor& weight) {
  auto call = c10::make_intrusive<PoolCall>();
  call->segments = segments;
  call->pooling = pooling;
  call->rebuilder = x.rebuilder;
  return PoolFunction::apply(
      x.value, weight.defined() ? std::optional<torch::Tensor>(weight) : std::nullopt, call);
}

}  // namespace graft::adapters
