#include "adapters/row_scale.h"

#include <algorithm>
#include <memory>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "models/device.h"

namespace graft::adapters {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kColumns = 256;  // accumulated side by side: they stay in the first-level cache

struct ScaleCall : torch::CustomClassHolder {
  ScaleCall(std::vector<int64_t> span_ends, std::shared_ptr<models::Rebuilder> input_rebuilder)
      : ends(std::move(span_ends)), rebuilder(std::move(input_rebuilder)) {}
  std::vector<int64_t> ends;
  std::shared_ptr<models::Rebuilder> rebuilder;  // null: the input itself was saved
};

template <typename T>
void ScaleSpans(const T* x, const at::opmath_type<T>* scales, const std::vector<int64_t>& ends,
                int64_t width, T* y) {
  using Wide = at::opmath_type<T>;
  int64_t first = 0;
  for (size_t s = 0; s < ends.size(); first = ends[s++]) {
    const Wide* scale = scales + static_cast<int64_t>(s) * width;
    at::parallel_for(first, ends[s], 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* in = x + row * width;
        T* out = y + row * width;
        for (int64_t i = 0; i < width; ++i) out[i] = static_cast<T>(Wide(in[i]) * scale[i]);
      }
    });
  }
}

// dx = l (.) g and dl = sum over the span of g (.) x, for columns [begin, begin + count). dx or dl
// may be null.
template <typename T>
void BackwardColumns(const T* x, const T* g, const at::opmath_type<T>* scales,
                     const std::vector<int64_t>& ends, int64_t width, int64_t begin, int64_t count,
                     T* dx, at::opmath_type<T>* dl) {
  using Wide = at::opmath_type<T>;
  Wide sums[kColumns];
  int64_t row = 0;
  for (size_t s = 0; s < ends.size(); ++s) {
    const int64_t span = static_cast<int64_t>(s) * width + begin;
    std::fill(sums, sums + count, Wide(0));
    for (; row < ends[s]; ++row) {
      const int64_t place = row * width + begin;
      if (dx != nullptr) {
        for (int64_t i = 0; i < count; ++i) {
          dx[place + i] = static_cast<T>(Wide(g[place + i]) * scales[span + i]);
        }
      }
      if (dl == nullptr) continue;
      for (int64_t i = 0; i < count; ++i) sums[i] += Wide(g[place + i]) * Wide(x[place + i]);
    }
    if (dl != nullptr) std::copy(sums, sums + count, dl + span);
  }
}

// The same two passes on another device, span by span, by LibTorch's operators.
template <typename Body>
void ForEachSpan(const std::vector<int64_t>& ends, const Body& body) {
  int64_t first = 0;
  for (size_t s = 0; s < ends.size(); first = ends[s++]) {
    body(static_cast<int64_t>(s), first, ends[s] - first);
  }
}

torch::Tensor DeviceForward(const torch::Tensor& x, const torch::Tensor& scales,
                            const std::vector<int64_t>& ends) {
  torch::Tensor y = at::empty_like(x);
  ForEachSpan(ends, [&](int64_t span, int64_t first, int64_t rows) {
    y.narrow(0, first, rows).copy_(x.narrow(0, first, rows) * scales.select(0, span));
  });
  return y;
}

void DeviceBackward(const torch::Tensor& x, const torch::Tensor& g, const torch::Tensor& scales,
                    const std::vector<int64_t>& ends, torch::Tensor& dx, torch::Tensor& dl) {
  ForEachSpan(ends, [&](int64_t span, int64_t first, int64_t rows) {
    const torch::Tensor part = g.narrow(0, first, rows);
    if (dx.defined()) dx.narrow(0, first, rows).copy_(part * scales.select(0, span));
    if (dl.defined()) {
      const torch::Tensor product = part.to(dl.scalar_type()) * x.narrow(0, first, rows);
      dl.select(0, span).copy_(product.sum(0));
    }
  });
}

torch::Tensor Forward(const torch::Tensor& x, const torch::Tensor& scales,
                      const std::vector<int64_t>& ends) {
  if (!models::UsesHostKernels(x)) return DeviceForward(x, scales, ends);
  torch::Tensor y = at::empty(x.sizes(), x.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "ScaleRows", [&] {
    ScaleSpans<scalar_t>(x.data_ptr<scalar_t>(), scales.data_ptr<at::opmath_type<scalar_t>>(), ends,
                         x.size(1), y.data_ptr<scalar_t>());
  });
  return y;
}

// dx and dl, each where it is defined.
void HostBackward(const torch::Tensor& x, const torch::Tensor& g, const torch::Tensor& scales,
                  const std::vector<int64_t>& ends, torch::Tensor& dx, torch::Tensor& dl) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, g.scalar_type(), "ScaleRows", [&] {
    using Wide = at::opmath_type<scalar_t>;
    const int64_t width = g.size(1);
    at::parallel_for(0, (width + kColumns - 1) / kColumns, 1, [&](int64_t from, int64_t to) {
      for (int64_t begin = from * kColumns; begin < std::min(width, to * kColumns);
           begin += kColumns) {
        BackwardColumns<scalar_t>(x.defined() ? x.data_ptr<scalar_t>() : nullptr,
                                  g.data_ptr<scalar_t>(), scales.data_ptr<Wide>(), ends, width,
                                  begin, std::min(kColumns, width - begin),
                                  dx.defined() ? dx.data_ptr<scalar_t>() : nullptr,
                                  dl.defined() ? dl.data_ptr<Wide>() : nullptr);
      }
    });
  });
}

class ScaleRowsFunction : public torch::autograd::Function<ScaleRowsFunction> {
 public:
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& x,
                               const torch::Tensor& scales,
                               const c10::intrusive_ptr<ScaleCall>& call) {
    variable_list saved = {scales};
    if (call->rebuilder == nullptr) saved.push_back(x);
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return Forward(x.contiguous(), scales.contiguous(), call->ends);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto holder = ctx->saved_data.at("call").toCapsule();
    auto& call = static_cast<ScaleCall&>(*holder);
    const variable_list saved = ctx->get_saved_variables();
    const torch::Tensor scales = saved[0].contiguous(), g = gradients[0].contiguous();
    torch::Tensor dx, dl, x;
    if (ctx->needs_input_grad(0)) dx = at::empty(g.sizes(), g.options());
    if (ctx->needs_input_grad(1)) {
      dl = at::empty(scales.sizes(), scales.options());
      x = (call.rebuilder ? call.rebuilder->Get() : saved[1]).contiguous();
    }
    const auto pass = models::UsesHostKernels(g) ? &HostBackward : &DeviceBackward;
    pass(x, g, scales, call.ends, dx, dl);
    return {dx, dl, torch::Tensor()};
  }
};

}  // namespace

torch::Tensor ScaleRows(const models::SiteInput& x, const torch::Tensor& scales,
                        std::vector<int64_t> ends) {
  const int64_t rows = x.value.size(0);
  GRAFT_CHECK(!ends.empty() && ends.back() == rows && std::is_sorted(ends.begin(), ends.end()),
              absl::StrCat("spans that do not cover ", rows, " rows"));
  return ScaleRowsFunction::apply(x.value, scales,
                                  c10::make_intrusive<ScaleCall>(std::move(ends), x.rebuilder));
}

}  // namespace graft::adapters
