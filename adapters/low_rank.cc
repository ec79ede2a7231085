#include "adapters/low_rank.h"

#include <algorithm>
#include <array>
#include <bit>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "base/vector_clones.h"

namespace graft::adapters {
namespace {

constexpr int64_t kColumns =
    32;  // of one tile: with kRanks sums of so many they fill the registers
constexpr int64_t kRanks = 8;

// A bfloat16 matrix as its raw bits.
struct Bits {
  const uint16_t* data;
  int64_t step;  // from row to row
};

// sum (kRanks, kColumns) += t (kRanks, rows) x rows (rows, kColumns), in float32.
GRAFT_CLONES void AddTile(Bits t, Bits rows, int64_t num_rows, float* sum) {
  std::array<float, kRanks * kColumns> local;
  std::copy_n(sum, local.size(), local.begin());
  for (int64_t n = 0; n < num_rows; ++n) {
    float row[kColumns];
#pragma omp simd
    for (int64_t c = 0; c < kColumns; ++c)
      row[c] = std::bit_cast<float>(static_cast<uint32_t>(rows.data[n * rows.step + c]) << 16);
    for (int64_t r = 0; r < kRanks; ++r) {
      const float factor =
          std::bit_cast<float>(static_cast<uint32_t>(t.data[r * t.step + n]) << 16);
#pragma omp simd
      for (int64_t c = 0; c < kColumns; ++c)
        local[static_cast<size_t>(r * kColumns + c)] += factor * row[c];
    }
  }
  std::copy(local.begin(), local.end(), sum);
}

bool FitsTiles(const torch::Tensor& t, const torch::Tensor& rows) {
  return rows.is_cpu() && rows.scalar_type() == at::kBFloat16 && t.scalar_type() == at::kBFloat16 &&
         t.size(0) % kRanks == 0 && rows.size(1) % kColumns == 0 && rows.stride(1) == 1 &&
         t.stride(1) == 1;
}

Bits BitsOf(const torch::Tensor& matrix, int64_t row, int64_t column) {
  const int64_t step = matrix.stride(0);
  return {static_cast<const uint16_t*>(matrix.const_data_ptr()) + row * step + column, step};
}

// Tile by tile, so that nothing is up-cast in memory.
torch::Tensor SumOverRowsInTiles(const torch::Tensor& t, const torch::Tensor& rows) {
  const int64_t ranks = t.size(0), width = rows.size(1);
  torch::Tensor sum = at::empty({ranks, width}, at::kFloat);
  at::parallel_for(0, width / kColumns, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t rank = 0; rank < ranks; rank += kRanks) {
        std::array<float, kRanks * kColumns> part{};
        AddTile(BitsOf(t, rank, 0), BitsOf(rows, 0, tile * kColumns), rows.size(0), part.data());
        for (int64_t r = 0; r < kRanks; ++r) {
          std::copy_n(part.data() + r * kColumns, kColumns,
                      sum.data_ptr<float>() + (rank + r) * width + tile * kColumns);
        }
      }
    }
  });
  return sum;
}

}  // namespace

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
  if (FitsTiles(t, rows)) return SumOverRowsInTiles(t, rows);
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
