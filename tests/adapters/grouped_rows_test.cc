#include "adapters/grouped_rows.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

// Factors of one adapter.
struct Factors {
  at::Tensor a, b_transposed;
  LowRankGroup Rows(int64_t begin, int64_t end, int64_t column) const {
    return {.begin = begin,
            .end = end,
            .rank = a.size(0),
            .a = a.const_data_ptr<float>(),
            .b_transposed = b_transposed.const_data_ptr<float>(),
            .factor = 0.75f,
            .column = column};
  }
};

Factors RandomFactors(int64_t rank, int64_t in, int64_t out) {
  return {at::randn({rank, in}), at::randn({rank, out})};
}

// y after both steps; t has `columns` columns.
at::Tensor Edited(const at::Tensor& x, const at::Tensor& y, const std::vector<LowRankGroup>& groups,
                  int64_t columns) {
  at::Tensor t = at::empty({x.size(0), columns}), edited = y.clone();
  ProjectGroupsDown(x.const_data_ptr<float>(), x.size(1), groups, t.data_ptr<float>(), columns);
  AddGroupsUp(t.const_data_ptr<float>(), columns, groups, edited.data_ptr<float>(), y.size(1));
  return edited;
}

// Widths around the lanes and tiles of the kernel, ranks of every remainder, rows that no group
// has.
TEST(GroupedRowsTest, EachRowGetsItsOwnAdaptersEdit) {
  at::manual_seed(3);
  for (const auto& [in, out] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {15, 17}, {16, 16}, {70, 33}, {576, 1536}}) {
    const at::Tensor x = at::randn({11, in}), y = at::randn({11, out});
    const Factors one = RandomFactors(1, in, out), seven = RandomFactors(7, in, out),
                  eight = RandomFactors(8, in, out);
    const at::Tensor edited =
        Edited(x, y, {one.Rows(0, 1, 0), seven.Rows(1, 6, 2), eight.Rows(7, 11, 1)}, 9);
    at::Tensor wanted = y.to(at::kDouble);
    const auto add = [&](const Factors& factors, int64_t begin, int64_t end) {
      const at::Tensor t =
          at::mm(x.narrow(0, begin, end - begin).to(at::kDouble), factors.a.to(at::kDouble).t());
      wanted.narrow(0, begin, end - begin)
          .add_(at::mm(t, factors.b_transposed.to(at::kDouble)), 0.75);
    };
    add(one, 0, 1);
    add(seven, 1, 6);
    add(eight, 7, 11);
    EXPECT_LT(RelativeError(edited, wanted), 1e-6) << in << " " << out;
    EXPECT_TRUE(at::equal(edited[6], y[6]));
  }
}

// The promise that the engine rests on.
TEST(GroupedRowsTest, ARowHasTheSameBitsWhateverStandsBesideIt) {
  at::manual_seed(4);
  const int64_t rows = 13, in = 100, out = 300;
  const at::Tensor x = at::randn({rows, in}), y = at::randn({rows, out});
  const Factors factors = RandomFactors(6, in, out);
  const at::Tensor together = Edited(x, y, {factors.Rows(0, rows, 0)}, 6);
  for (int64_t row = 0; row < rows; ++row) {
    const at::Tensor alone = Edited(x.narrow(0, row, 1).clone(), y.narrow(0, row, 1).clone(),
                                    {factors.Rows(0, 1, 0)}, 6);
    EXPECT_TRUE(at::equal(alone[0], together[row])) << row;
  }
  const int threads = at::get_num_threads();
  at::set_num_threads(3);
  EXPECT_TRUE(at::equal(Edited(x, y, {factors.Rows(0, rows, 0)}, 6), together));
  at::set_num_threads(threads);
}

TEST(GroupedRowsTest, ScalesAndShiftsTheRowsThatHaveVectors) {
  at::manual_seed(5);
  const at::Tensor from = at::randn({5, 37}), scale = at::randn({37}), bias = at::randn({37});
  const float* s = scale.const_data_ptr<float>();
  const float* b = bias.const_data_ptr<float>();
  const std::vector<RowVectors> rows = {{s, b}, {}, {s, nullptr}, {nullptr, b}, {}};
  at::Tensor to = at::empty_like(from), in_place = from.clone();
  ScaleAndShiftRows(from.const_data_ptr<float>(), to.data_ptr<float>(), 37, rows);
  ScaleAndShiftRows(in_place.data_ptr<float>(), in_place.data_ptr<float>(), 37, rows);
  EXPECT_TRUE(at::allclose(to[0], from[0] * scale + bias, 1e-5, 1e-6));
  EXPECT_TRUE(at::equal(to[1], from[1]));
  EXPECT_TRUE(at::allclose(to[2], from[2] * scale, 1e-6, 1e-7));
  EXPECT_TRUE(at::allclose(to[3], from[3] + bias, 1e-6, 1e-7));
  EXPECT_TRUE(at::equal(to[4], from[4]));
  EXPECT_TRUE(at::equal(in_place, to));
}

}  // namespace
}  // namespace graft::adapters
