#include "adapters/low_rank.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace graft::adapters {

torch::Tensor ProjectDown(const torch::Tensor& a, const torch::Tensor& x) {
  return at::mm(a.to(x.scalar_type()), x.t());
}

void AddProjectUp(torch::Tensor y, const torch::Tensor& t, const torch::Tensor& b, double scale) {
  const torch::Tensor rounded = b.to(t.scalar_type());
  if (t.scalar_type() == y.scalar_type()) {
    y.addmm_(t.t(), rounded.t(), /*beta=*/1, /*alpha=*/scale);
  } else {
    y.add_(at::mm(t.t(), rounded.t()), scale);
  }
}

torch::Tensor SumOverRows(const torch::Tensor& t, const torch::Tensor& rows) {
  const auto wide = at::promote_types(at::kFloat, rows.scalar_type());
  if (t.scalar_type() == wide && rows.scalar_type() == wide) return at::mm(t, rows);
  if (rows.is_cuda()) return at::mm(t, rows.to(t.scalar_type()), wide);
  // A few rows at a time, so that the up-cast copy stays in the cache.
  constexpr int64_t kRows = 128;
  const torch::Tensor wide_t = t.to(wide);
  torch::Tensor sum = at::zeros({t.size(0), rows.size(1)}, rows.options().dtype(wide));
  for (int64_t begin = 0; begin < rows.size(0); begin += kRows) {
    const int64_t count = std::min(kRows, rows.size(0) - begin);
    sum.addmm_(wide_t.narrow(1, begin, count), rows.narrow(0, begin, count).to(wide));
  }
  return sum;
}

}  // namespace graft::adapters
