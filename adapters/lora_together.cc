#include "adapters/lora_together.h"

#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "adapters/low_rank.h"

namespace graft::adapters {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int kInputSlot = -1;  // of the context's scratch: the input; others: t of each linear

struct DownCall : torch::CustomClassHolder {
  explicit DownCall(std::shared_ptr<models::Rebuilder> input_rebuilder)
      : rebuilder(std::move(input_rebuilder)) {}
  std::shared_ptr<models::Rebuilder> rebuilder;  // null: the input itself was saved
};

// t = x A^T for the A of all linears, one below the other: (R, N).
class DownFunction : public torch::autograd::Function<DownFunction> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& x, const torch::Tensor& a,
                               torch::Dtype compute_dtype,
                               const c10::intrusive_ptr<DownCall>& call) {
    const torch::Tensor rounded = a.to(compute_dtype);
    variable_list saved = {rounded};
    if (call->rebuilder == nullptr) saved.push_back(x);
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    ctx->saved_data["x"] = static_cast<int64_t>(x.scalar_type());
    ctx->saved_data["a"] = static_cast<int64_t>(a.scalar_type());
    return ProjectDown(rounded, x.to(compute_dtype));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto holder = ctx->saved_data.at("call").toCapsule();
    const auto& call = static_cast<const DownCall&>(*holder);
    const variable_list saved = ctx->get_saved_variables();
    const torch::Tensor dt = gradients[0].contiguous();
    torch::Tensor dx, da;
    if (ctx->needs_input_grad(0)) dx = at::mm(dt.t(), saved[0]).to(Type(ctx, "x"));
    if (ctx->needs_input_grad(1)) {
      const torch::Tensor x = call.rebuilder ? call.rebuilder->Get() : saved[1];
      da = SumOverRows(dt, x).to(Type(ctx, "a"));
    }
    return {dx, da, torch::Tensor(), torch::Tensor()};
  }

 private:
  static torch::Dtype Type(AutogradContext* ctx, const char* name) {
    return static_cast<torch::Dtype>(ctx->saved_data.at(name).toInt());
  }
};

class UpFunction : public torch::autograd::Function<UpFunction> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& y, const torch::Tensor& t,
                               const torch::Tensor& b, double scale) {
    AddProjectUp(y, t, b, scale);
    ctx->save_for_backward({t, b});
    ctx->saved_data["scale"] = scale;
    ctx->mark_dirty({y});
    return y;
  }

  // dt = s B^T dy^T, dB = s dy^T t^T.
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const torch::Tensor &t = saved[0], &b = saved[1], &dy = gradients[0];
    const double scale = ctx->saved_data.at("scale").toDouble();
    torch::Tensor dt, db;
    if (ctx->needs_input_grad(1)) dt = ProjectDown(b.t(), dy.to(t.scalar_type())).mul_(scale);
    if (ctx->needs_input_grad(2)) db = SumOverRows(t, dy).mul_(scale).t().to(b.scalar_type());
    return {dy, dt, db, torch::Tensor()};
  }
};

}  // namespace

std::vector<torch::Tensor> LoraTogether::Products(const models::SiteInput& x) const {
  const torch::Tensor all = at::cat(a_);
  std::vector<int64_t> ranks;
  for (const torch::Tensor& a : a_) ranks.push_back(a.size(0));
  const bool differentiable =
      at::GradMode::is_enabled() && (all.requires_grad() || x.value.requires_grad());
  const torch::Tensor t = differentiable
                              ? DownFunction::apply(x.value, all, compute_dtype_,
                                                    c10::make_intrusive<DownCall>(x.rebuilder))
                              : ProjectDown(all.to(compute_dtype_), x.value.to(compute_dtype_));
  return t.split_with_sizes(ranks);
}

std::optional<torch::Tensor> LoraTogether::Project(size_t index, const models::SiteInput& x,
                                                   models::SiteContext& context) const {
  const auto slot = [this](int number) { return std::pair<const void*, int>(this, number); };
  const auto mine = slot(static_cast<int>(index));
  if (!context.scratch.contains(slot(kInputSlot))) {
    std::vector<torch::Tensor> products = Products(x);
    for (size_t i = 0; i < products.size(); ++i)
      context.scratch[slot(static_cast<int>(i))] = std::move(products[i]);
    context.scratch[slot(kInputSlot)] = x.value;
  }
  if (!context.scratch.at(slot(kInputSlot)).is_same(x.value)) return std::nullopt;
  auto found = context.scratch.extract(mine);
  if (found.empty()) return std::nullopt;
  // Nothing of this outlives the last linear.
  bool last = true;
  for (size_t i = 0; i < a_.size(); ++i)
    last = last && !context.scratch.contains(slot(static_cast<int>(i)));
  if (last) context.scratch.erase(slot(kInputSlot));
  return std::move(found.mapped());
}

torch::Tensor AddProjected(torch::Tensor y, const torch::Tensor& t, const torch::Tensor& b,
                           double scale) {
  const bool differentiable =
      at::GradMode::is_enabled() && (y.requires_grad() || t.requires_grad() || b.requires_grad());
  if (differentiable) return UpFunction::apply(y, t, b, scale);
  AddProjectUp(y, t, b, scale);
  return y;
}

}  // namespace graft::adapters
