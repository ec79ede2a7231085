#include "models/layers/rms_norm.h"

#include <cmath>
#include <utility>

#include <ATen/ATen.h>

#include "models/device.h"
#include "models/layers/device_rows.h"
#include "models/layers/rebuilt_state.h"
#include "models/layers/row_kernels.h"
#include "models/layers/rows.h"

namespace graft::models {
namespace {

// The reference rounds x * rstd to the model's dtype before the weight; kept, so that bfloat16 runs
// agree with it.
torch::Tensor Normalise(const torch::Tensor& x, const torch::Tensor& weight32,
                        const torch::Tensor& rstd) {
  if (!UsesHostKernels(x)) return device::ScaleByNorm(x, weight32, rstd);
  torch::Tensor y = at::empty_like(x);
  const int64_t width = x.size(1);
  const bool rounds = x.scalar_type() != torch::kFloat32;
  const float* w = weight32.const_data_ptr<float>();
  const float* scale = rstd.const_data_ptr<float>();
  rows::ParallelRows(x.size(0), width, [&](int64_t begin, int64_t end) {
    rows::RowReader in(x);
    rows::RowWriter out(y);
    for (int64_t row = begin; row < end; ++row) {
      const float* from = in.Read(row);
      float* to = out.Room(row);
      if (rounds) {
        for (int64_t i = 0; i < width; ++i)
          to[i] = w[i] * static_cast<float>(static_cast<c10::BFloat16>(from[i] * scale[row]));
      } else {
        rows::ScaleByNorm(from, w, scale[row], to, width);
      }
      out.Store(row);
    }
  });
  return y;
}

torch::Tensor ReciprocalRms(const torch::Tensor& x, double eps) {
  torch::Tensor rstd = at::empty({x.size(0)}, x.options().dtype(torch::kFloat32));
  const int64_t width = x.size(1);
  float* out = rstd.data_ptr<float>();
  rows::ParallelRows(x.size(0), width, [&](int64_t begin, int64_t end) {
    rows::RowReader in(x);
    for (int64_t row = begin; row < end; ++row) {
      const float mean = rows::SumOfSquares(in.Read(row), width) / static_cast<float>(width);
      out[row] = 1.0f / std::sqrt(mean + static_cast<float>(eps));
    }
  });
  return rstd;
}

torch::Tensor NormBackward(const torch::Tensor& x, const torch::Tensor& weight32,
                           const torch::Tensor& rstd, const torch::Tensor& dy) {
  if (!UsesHostKernels(x)) return device::RmsNormBackward(x, weight32, rstd, dy);
  torch::Tensor dx = at::empty_like(x);
  const int64_t width = x.size(1);
  const float* w = weight32.const_data_ptr<float>();
  const float* scale = rstd.const_data_ptr<float>();
  rows::ParallelRows(x.size(0), width, [&](int64_t begin, int64_t end) {
    rows::RowReader in(x), grad(dy);
    rows::RowWriter out(dx);
    for (int64_t row = begin; row < end; ++row) {
      rows::RmsNormBackward(in.Read(row), w, grad.Read(row), scale[row], out.Room(row), width);
      out.Store(row);
    }
  });
  return dx;
}

// What forward, rebuild and backward share: x and rstd are what autograd keeps of a norm.
class NormState : public RebuiltState {
 public:
  NormState(torch::Tensor x, torch::Tensor weight32, double eps)
      : x_(std::move(x)), weight32_(std::move(weight32)) {
    if (UsesHostKernels(x_)) {
      rstd_ = ReciprocalRms(x_, eps);
    } else {
      auto [y, rstd] = device::RmsNorm(x_, weight32_, eps);
      first_ = y;
      rstd_ = rstd;
    }
  }
  torch::Tensor Compute() override {
    if (first_.defined()) return std::exchange(first_, torch::Tensor());
    return Normalise(x_, weight32_, rstd_);
  }
  torch::Tensor Backward(const torch::Tensor& dy) { return NormBackward(x_, weight32_, rstd_, dy); }

 private:
  torch::Tensor x_, weight32_, rstd_;
  torch::Tensor
      first_;  // the output, where one pass over the rows gives both: for the forward pass
};

}  // namespace

SiteInput RmsNorm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  return ApplyRebuilt(x, std::make_shared<NormState>(x.detach(), weight, eps));
}

}  // namespace graft::models
