#include "models/layers/few_rows.h"

#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "models/layers/frozen_linear.h"
#include "tests/models/relative_error.h"

namespace graft::models {
namespace {

using torch::Tensor;

// Widths around the kernel's lanes and tiles; a row alone has the bits that it has among others.
TEST(FewRowsTest, AProductOfFewRowsIsThatOfEachRow) {
  at::manual_seed(7);
  for (const auto& [in, out] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {15, 3}, {16, 4}, {50, 33}, {576, 192}}) {
    const Tensor weight = at::randn({out, in}), x = at::randn({11, in});
    const Tensor y = MultiplyFewRows(x, weight);
    EXPECT_LE(RelativeError(y, at::mm(x, weight.t())), 2e-6) << in << " " << out;
    for (int64_t row = 0; row < x.size(0); ++row) {
      const Tensor alone = MultiplyFewRows(x.narrow(0, row, 1), weight);
      EXPECT_TRUE(at::equal(alone[0], y[row])) << in << " " << out << " " << row;
    }
    EXPECT_TRUE(at::equal(MakeFrozenWeight(weight)->Multiply(x, torch::kFloat32), y));
  }
}

}  // namespace
}  // namespace graft::models
