// The edits of decoding rows that belong to many adapters, all rows in one go: low-rank products by
// groups of rows, of any ranks, and gathered scale-and-bias vectors. Used by trainer/tenants.
//
// What a row becomes depends on that row and its adapter alone, bit for bit: every sum has a fixed
// order, whatever rows stand beside it and however many threads run. CPU, float32.
//
// Shapes: N rows, r rank, D_in, D_out widths of a linear, T columns of the inner products.
#pragma once

#include <cstdint>
#include <vector>

namespace graft::adapters {

// y' = y + factor B (A x) for rows [begin, end), which belong to one adapter.
struct LowRankGroup {
  int64_t begin = 0, end = 0;
  int64_t rank = 0;
  const float* a = nullptr;             // (r, D_in)
  const float* b_transposed = nullptr;  // (r, D_out)
  float factor = 1;
  int64_t column = 0;  // of the inner products: where its r numbers stand in each of its rows
};

// t[row, column + j] = factor <a_j, x[row]>. Groups may share rows: those of linears with the same
// input are done in one call. x (N, D_in), t (N, T), both contiguous.
void ProjectGroupsDown(const float* x, int64_t width, const std::vector<LowRankGroup>& groups,
                       float* t, int64_t columns);
// y[row] += sum_j t[row, column + j] b_j. y (N, D_out) contiguous.
void AddGroupsUp(const float* t, int64_t columns, const std::vector<LowRankGroup>& groups, float* y,
                 int64_t width);

// One row's vectors (D); null = 1, 0.
struct RowVectors {
  const float* scale = nullptr;
  const float* bias = nullptr;
};
// to[row] = scale (.) from[row] + bias, (N, D) contiguous; they may be the same memory, and then
// rows without vectors cost nothing.
void ScaleAndShiftRows(const float* from, float* to, int64_t width,
                       const std::vector<RowVectors>& rows);

}  // namespace graft::adapters
