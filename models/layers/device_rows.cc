#include "models/layers/device_rows.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "models/gpu_kernels.h"

namespace graft::models::device {
namespace {

constexpr char kSource[] =
#include "models/layers/row_kernels_gpu.inc"
    ;
constexpr int kThreads = 256;         // of a kernel without rows
constexpr int kMaxRowThreads = 1024;  // of a block that does one row

torch::Tensor Wide(const torch::Tensor& x) { return x.to(torch::kFloat32); }

// Whole warps, one access each where the row is short.
int RowThreads(int64_t width, int access) {
  const int64_t accesses = (width + access - 1) / access;
  return static_cast<int>(std::min<int64_t>(kMaxRowThreads, (accesses + 31) / 32 * 32));
}

int64_t Blocks(int64_t count, int access) {
  const int64_t each = int64_t{kThreads} * access;
  return (count + each - 1) / each;
}

}  // namespace

GpuKernels& RowKernels() {
  static GpuKernels kernels("row_kernels", kSource);
  return kernels;
}

Normed RmsNorm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  GpuKernels::Variant variant;
  if (!RowKernels().Fits({x}, x.size(1), &variant)) {
    const torch::Tensor rstd = Wide(x).square().mean(1).add_(eps).rsqrt_();
    return {ScaleByNorm(x, weight, rstd), rstd};
  }
  Normed result{at::empty_like(x), at::empty({x.size(0)}, weight.options())};
  GpuArguments arguments;
  arguments.Add(x).Add(weight).Add(result.y).Add(result.rstd);
  arguments.Add(static_cast<float>(eps)).Add(x.size(1));
  RowKernels().Launch("RmsNorm", variant, x.device(), x.size(0),
                      RowThreads(x.size(1), variant.width), arguments.Pointers());
  return result;
}

torch::Tensor ScaleByNorm(const torch::Tensor& x, const torch::Tensor& weight,
                          const torch::Tensor& rstd) {
  GpuKernels::Variant variant;
  if (!RowKernels().Fits({x}, x.size(1), &variant)) {
    const torch::Tensor normed = (x * rstd.unsqueeze(1)).to(x.scalar_type());
    return (normed * weight).to(x.scalar_type());
  }
  torch::Tensor y = at::empty_like(x);
  GpuArguments arguments;
  arguments.Add(x).Add(weight).Add(rstd).Add(y).Add(x.size(1));
  RowKernels().Launch("ScaleByNorm", variant, x.device(), x.size(0),
                      RowThreads(x.size(1), variant.width), arguments.Pointers());
  return y;
}

torch::Tensor RmsNormBackward(const torch::Tensor& x, const torch::Tensor& weight,
                              const torch::Tensor& rstd, const torch::Tensor& dy) {
  GpuKernels::Variant variant;
  if (!RowKernels().Fits({x, dy}, x.size(1), &variant)) {
    const torch::Tensor normed = x * rstd.unsqueeze(1), weighted = dy * weight;
    const torch::Tensor mean = (normed * weighted).mean(1, /*keepdim=*/true);
    return ((weighted - normed * mean) * rstd.unsqueeze(1)).to(x.scalar_type());
  }
  torch::Tensor dx = at::empty_like(x);
  GpuArguments arguments;
  arguments.Add(x).Add(weight).Add(rstd).Add(dy).Add(dx).Add(x.size(1));
  RowKernels().Launch("RmsNormBackward", variant, x.device(), x.size(0),
                      RowThreads(x.size(1), variant.width), arguments.Pointers());
  return dx;
}

torch::Tensor SwiGlu(const torch::Tensor& gate, const torch::Tensor& up) {
  GpuKernels::Variant variant;
  if (!RowKernels().Fits({gate, up}, gate.numel(), &variant))
    return (at::silu(Wide(gate)) * up).to(gate.scalar_type());
  torch::Tensor y = at::empty_like(gate);
  GpuArguments arguments;
  arguments.Add(gate).Add(up).Add(y).Add(gate.numel());
  RowKernels().Launch("SwiGlu", variant, gate.device(), Blocks(gate.numel(), variant.width),
                      kThreads, arguments.Pointers());
  return y;
}

std::array<torch::Tensor, 2> SwiGluBackward(const torch::Tensor& gate, const torch::Tensor& up,
                                            const torch::Tensor& dy) {
  GpuKernels::Variant variant;
  if (!RowKernels().Fits({gate, up, dy}, gate.numel(), &variant)) {
    const torch::Tensor wide_gate = Wide(gate), wide_dy = Wide(dy);
    return {at::silu_backward(wide_dy * up, wide_gate).to(gate.scalar_type()),
            (wide_dy * at::silu(wide_gate)).to(up.scalar_type())};
  }
  torch::Tensor dgate = at::empty_like(gate), dup = at::empty_like(up);
  GpuArguments arguments;
  arguments.Add(gate).Add(up).Add(dy).Add(dgate).Add(dup).Add(gate.numel());
  RowKernels().Launch("SwiGluBackward", variant, gate.device(), Blocks(gate.numel(), variant.width),
                      kThreads, arguments.Pointers());
  return {dgate, dup};
}

torch::Tensor Rotate(const torch::Tensor& x, const torch::Tensor& cosine, const torch::Tensor& sine,
                     int64_t head_dim, float sign) {
  const int64_t half = head_dim / 2;
  GpuKernels::Variant variant;
  if (!RowKernels().Fits({x}, half, &variant)) {
    const torch::Tensor heads = Wide(x).view({x.size(0), -1, 2, half});
    const torch::Tensor first = heads.select(2, 0), second = heads.select(2, 1);
    const torch::Tensor c = cosine.unsqueeze(1), s = (sine * sign).unsqueeze(1);
    return at::stack({first * c - second * s, second * c + first * s}, 2)
        .view(x.sizes())
        .to(x.scalar_type());
  }
  torch::Tensor y = at::empty_like(x);
  const int64_t pairs = x.numel() / 2;
  GpuArguments arguments;
  arguments.Add(x).Add(cosine).Add(sine).Add(y);
  arguments.Add(x.size(1) / head_dim).Add(half).Add(sign).Add(pairs);
  RowKernels().Launch("Rotate", variant, x.device(), Blocks(pairs, variant.width), kThreads,
                      arguments.Pointers());
  return y;
}

torch::Tensor TokenLosses(torch::Tensor& logits, const torch::Tensor& ids, bool gradient) {
  GpuKernels::Variant variant;
  if (RowKernels().Fits({logits}, logits.size(1), &variant)) {
    torch::Tensor losses = at::empty({logits.size(0)}, logits.options());
    GpuArguments arguments;
    arguments.Add(logits).Add(ids).Add(losses).Add(logits.size(1)).Add(int64_t{gradient});
    RowKernels().Launch("TokenLosses", variant, logits.device(), logits.size(0),
                        RowThreads(logits.size(1), variant.width), arguments.Pointers());
    return losses;
  }
  const torch::Tensor places = ids.unsqueeze(1);
  const torch::Tensor target = logits.gather(1, places);
  const torch::Tensor log_sum = at::logsumexp(logits, 1, /*keepdim=*/true);
  if (gradient) {
    logits.sub_(log_sum).exp_();
    logits.scatter_(1, places, logits.gather(1, places).sub_(1.0));
  }
  return (log_sum - target).squeeze(1);
}

}  // namespace graft::models::device
