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

torch::Tensor Forward(const torch::Tensor& x, const torch::Tensor& scales,
                      const std::vector<int64_t>& ends) {
  torch::Tensor y = at::empty(x.sizes(), x.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "ScaleRows", [&] {
    ScaleSpans<scalar_t>(x.data_ptr<scalar_t>(), scales.data_ptr<at::opmath_type<scalar_t>>(), ends,
                         x.size(1), y.data_ptr<scalar_t>());
  });
  return y;
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
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, g.scalar_type(), "ScaleRows", [&] {
      using Wide = at::opmath_type<scalar_t>;
      const int64_t width = g.size(1);
      at::parallel_for(0, (width + kColumns - 1) / kColumns, 1, [&](int64_t from, int64_t to) {
        for (int64_t begin = from * kColumns; begin < std::min(width, to * kColumns);
             begin += kColumns) {
          BackwardColumns<scalar_t>(x.defined() ? x.data_ptr<scalar_t>() : nullptr,
                                    g.data_ptr<scalar_t>(), scales.data_ptr<Wide>(), call.ends,
                                    width, begin, std::min(kColumns, width - begin),
                                    dx.defined() ? dx.data_ptr<scalar_t>() : nullptr,
                                    dl.defined() ? dl.data_ptr<Wide>() : nullptr);
        }
      });
    });
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
