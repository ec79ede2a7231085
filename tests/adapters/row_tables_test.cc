// Edits of rows by tables, on LibTorch's operators; tests/gpu has the kernels.
#include "adapters/row_tables.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/adapters/row_tables_case.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

TEST(RowTablesTest, EachRowGetsItsOwnAdaptersEdit) {
  for (const auto& [dtype, tolerance] :
       {std::pair(at::kFloat, 1e-6), std::pair(at::kBFloat16, 4e-3)}) {
    for (const auto& [in, out] :
         std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {15, 17}, {70, 33}, {576, 1536}}) {
      const RowTablesCase rows(in, out, dtype, at::kCPU);
      const RowTablesCase::Result got = rows.Edited(), want = rows.Wanted();
      EXPECT_LT(RelativeError(got.first, want.first), tolerance) << in << " " << out;
      EXPECT_LT(RelativeError(got.second, want.second), tolerance) << in << " " << out;
      EXPECT_LT(RelativeError(got.scaled, want.scaled), tolerance) << in << " " << out;
      EXPECT_TRUE(at::equal(got.first[RowTablesCase::kBareRow], rows.y()[RowTablesCase::kBareRow]));
    }
  }
}

}  // namespace
}  // namespace graft::adapters
