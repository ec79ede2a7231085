#include "adapters/grouped_rows.h"

#include <algorithm>
#include <cstring>

#include <ATen/Parallel.h>

// One body, several instruction sets; the loader picks.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define GRAFT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GRAFT_CLONES
#endif
#define GRAFT_INLINE __attribute__((always_inline)) inline

namespace graft::adapters {
namespace {

// Sixteen floats; the compiler splits it where registers are narrower.
typedef float Vector __attribute__((vector_size(64)));
typedef float HalfVector __attribute__((vector_size(32)));
typedef float QuarterVector __attribute__((vector_size(16)));
constexpr int64_t kLanes = 16;
constexpr int64_t kRanks = 4, kRows = 4;   // of a tile: its sums stay in registers
constexpr int64_t kColumns = 256;          // of a piece of work on the way up
constexpr int64_t kWorkOfThread = 32'768;  // products that are worth a thread

// References keep vectors of this width out of calling conventions.
GRAFT_INLINE void Load(const float* from, Vector* to) { std::memcpy(to, from, sizeof(Vector)); }

GRAFT_INLINE float Sum(const Vector& v) {
  HalfVector half[2];
  std::memcpy(half, &v, sizeof(v));
  half[0] += half[1];
  QuarterVector quarter[2];
  std::memcpy(quarter, half, sizeof(quarter));
  quarter[0] += quarter[1];
  return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

// t[i * t_step + j] = factor <a_j, x_i> for a tile. Each of the sums is formed lane by lane in
// rising order, so tiles of every size give the same bits.
template <int kA, int kX>
GRAFT_INLINE void DotTile(const float* a, const float* x, int64_t width, float factor, float* t,
                          int64_t t_step) {
  Vector sum[kA][kX] = {};
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t place = 0; place < whole; place += kLanes) {
    Vector row[kX];
#pragma GCC unroll 4
    for (int i = 0; i < kX; ++i) Load(x + i * width + place, &row[i]);
#pragma GCC unroll 4
    for (int j = 0; j < kA; ++j) {
      Vector factors;
      Load(a + j * width + place, &factors);
#pragma GCC unroll 4
      for (int i = 0; i < kX; ++i) sum[j][i] += factors * row[i];
    }
  }
  for (int j = 0; j < kA; ++j) {
    for (int i = 0; i < kX; ++i) {
      float total = Sum(sum[j][i]);
      for (int64_t place = whole; place < width; ++place)
        total += a[j * width + place] * x[i * width + place];
      t[i * t_step + j] = factor * total;
    }
  }
}

template <int kA>
GRAFT_INLINE void DotRows(const float* a, const float* x, int64_t rows, int64_t width, float factor,
                          float* t, int64_t t_step) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows)
    DotTile<kA, kRows>(a, x + row * width, width, factor, t + row * t_step, t_step);
  for (; row < rows; ++row)
    DotTile<kA, 1>(a, x + row * width, width, factor, t + row * t_step, t_step);
}

// Ranks [first, last) of a group.
GRAFT_CLONES void ProjectDown(const LowRankGroup& group, int64_t first, int64_t last,
                              const float* x, int64_t width, float* t, int64_t columns) {
  const float* rows = x + group.begin * width;
  float* out = t + group.begin * columns + group.column;
  const int64_t count = group.end - group.begin;
  int64_t rank = first;
  for (; rank + kRanks <= last; rank += kRanks)
    DotRows<kRanks>(group.a + rank * width, rows, count, width, group.factor, out + rank, columns);
  for (; rank < last; ++rank)
    DotRows<1>(group.a + rank * width, rows, count, width, group.factor, out + rank, columns);
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
