#include "adapters/grouped_rows.h"

#include <algorithm>

#include <ATen/Parallel.h>

#include "base/dot_tile.h"
#include "base/vector_clones.h"

namespace graft::adapters {
namespace {

constexpr int64_t kRanks = 4, kRows = 4;   // of a tile: its sums stay in registers
constexpr int64_t kColumns = 256;          // of a piece of work on the way up
constexpr int64_t kWorkOfThread = 32'768;  // products that are worth a thread

// t[i * t_step + j] = factor <a_j, x_i> for a tile.
template <int kA, int kX>
GRAFT_INLINE void ProjectTile(const float* a, const float* x, int64_t width, float factor, float* t,
                              int64_t t_step) {
  float products[kX][kA];
  DotTile<kA, kX>(a, x, width, products);
  for (int i = 0; i < kX; ++i) {
    for (int j = 0; j < kA; ++j) t[i * t_step + j] = factor * products[i][j];
  }
}

template <int kA>
GRAFT_INLINE void ProjectRows(const float* a, const float* x, int64_t rows, int64_t width,
                              float factor, float* t, int64_t t_step) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows)
    ProjectTile<kA, kRows>(a, x + row * width, width, factor, t + row * t_step, t_step);
  for (; row < rows; ++row)
    ProjectTile<kA, 1>(a, x + row * width, width, factor, t + row * t_step, t_step);
}

// Ranks [first, last) of a group.
GRAFT_CLONES void ProjectDown(const LowRankGroup& group, int64_t first, int64_t last,
                              const float* x, int64_t width, float* t, int64_t columns) {
  const float* rows = x + group.begin * width;
  float* out = t + group.begin * columns + group.column;
  const int64_t count = group.end - group.begin;
  int64_t rank = first;
  for (; rank + kRanks <= last; rank += kRanks)
    ProjectRows<kRanks>(group.a + rank * width, rows, count, width, group.factor, out + rank,
                        columns);
  for (; rank < last; ++rank)
    ProjectRows<1>(group.a + rank * width, rows, count, width, group.factor, out + rank, columns);
}

// Outputs [first, last) of a group.
GRAFT_CLONES void AddUp(const LowRankGroup& group, int64_t first, int64_t last, const float* t,
                        int64_t columns, float* y, int64_t width) {
  for (int64_t row = group.begin; row < group.end; ++row) {
    const float* inner = t + row * columns + group.column;
    float* out = y + row * width;
    for (int64_t j = 0; j < group.rank; ++j) {
      const float* b = group.b_transposed + j * width;
      const float factor = inner[j];
#pragma omp simd
      for (int64_t i = first; i < last; ++i) out[i] += factor * b[i];
    }
  }
}

GRAFT_CLONES void Edit(const float* from, float* to, int64_t width, RowVectors vectors) {
  const float* scale = vectors.scale;
  const float* bias = vectors.bias;
  if (scale != nullptr && bias != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[i] = from[i] * scale[i] + bias[i];
  } else if (scale != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[i] = from[i] * scale[i];
  } else if (bias != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[i] = from[i] + bias[i];
  } else if (to != from) {
    std::copy_n(from, width, to);
  }
}

// A piece of a group: ranks on the way down, outputs on the way up.
struct Piece {
  const LowRankGroup* group;
  int64_t first, last;
};

// Runs body(piece) on the threads; `work`: products of all of them.
template <typename Body>
void ForEachPiece(const std::vector<Piece>& pieces, int64_t work, const Body& body) {
  const auto count = static_cast<int64_t>(pieces.size());
  const int64_t threads = std::clamp<int64_t>(work / kWorkOfThread, 1, at::get_num_threads());
  at::parallel_for(0, count, (count + threads - 1) / threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(pieces[static_cast<size_t>(i)]);
  });
}

}  // namespace

void ProjectGroupsDown(const float* x, int64_t width, const std::vector<LowRankGroup>& groups,
                       float* t, int64_t columns) {
  std::vector<Piece> pieces;
  int64_t work = 0;
  for (const LowRankGroup& group : groups) {
    for (int64_t rank = 0; rank < group.rank; rank += kRanks)
      pieces.push_back({&group, rank, std::min(rank + kRanks, group.rank)});
    work += (group.end - group.begin) * group.rank * width;
  }
  ForEachPiece(pieces, work, [&](const Piece& piece) {
    ProjectDown(*piece.group, piece.first, piece.last, x, width, t, columns);
  });
}

void AddGroupsUp(const float* t, int64_t columns, const std::vector<LowRankGroup>& groups, float* y,
                 int64_t width) {
  std::vector<Piece> pieces;
  int64_t work = 0;
  for (const LowRankGroup& group : groups) {
    for (int64_t first = 0; first < width; first += kColumns)
      pieces.push_back({&group, first, std::min(first + kColumns, width)});
    work += (group.end - group.begin) * group.rank * width;
  }
  ForEachPiece(pieces, work, [&](const Piece& piece) {
    AddUp(*piece.group, piece.first, piece.last, t, columns, y, width);
  });
}

void ScaleAndShiftRows(const float* from, float* to, int64_t width,
                       const std::vector<RowVectors>& rows) {
  const int64_t grain = std::max<int64_t>(1, kWorkOfThread / width);
  at::parallel_for(0, static_cast<int64_t>(rows.size()), grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      Edit(from + row * width, to + row * width, width, rows[static_cast<size_t>(row)]);
  });
}

}  // namespace graft::adapters
