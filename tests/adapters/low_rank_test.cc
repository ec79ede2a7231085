#include "adapters/low_rank.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

TEST(LowRank, ProductsEqualTheirFormulas) {
  at::manual_seed(1);
  const auto x = at::randn({300, 12}), a = at::randn({3, 12}), b = at::randn({7, 3});
  const auto t = ProjectDown(a, x);
  EXPECT_LT(RelativeError(t, at::einsum("ri,ni->rn", {a, x})), 1e-6);
  const auto y = at::randn({300, 7});
  const auto expected = y + 0.5 * at::einsum("rn,or->no", {t, b});
  AddProjectUp(y, t, b, 0.5);
  EXPECT_LT(RelativeError(y, expected), 1e-6);
  EXPECT_LT(RelativeError(SumOverRows(t, x), at::einsum("rn,ni->ri", {t, x})), 1e-5);
}

TEST(LowRank, BfloatSumsAreFloat32) {
  at::manual_seed(2);
  // Whole tiles, and what does not fit them.
  for (const auto& [rank, width] : {std::pair<int64_t, int64_t>{3, 12}, {16, 96}}) {
    const auto t = at::randn({rank, 1000}).to(at::kBFloat16),
               x = at::randn({1000, width}).to(at::kBFloat16);
    const auto sum = SumOverRows(t, x);
    EXPECT_EQ(sum.scalar_type(), at::kFloat);
    // One rounding to bfloat16 alone would be an error of 2e-3.
    EXPECT_LT(RelativeError(sum, at::mm(t.to(at::kDouble), x.to(at::kDouble))), 1e-5);
  }
}

TEST(LowRank, Float32StateIsAddedToBfloatWithOneRounding) {
  at::manual_seed(3);
  const auto t = at::randn({3, 40}), b = at::randn({7, 3});
  const auto y = at::randn({40, 7}).to(at::kBFloat16);
  const auto expected = (y.to(at::kFloat) + 0.25 * at::mm(t.t(), b.t())).to(at::kBFloat16);
  AddProjectUp(y, t, b, 0.25);
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_LT(RelativeError(y, expected), 1e-2);
  EXPECT_GT(at::eq(y, expected).to(at::kFloat).mean().item<double>(), 0.97);
}

}  // namespace
}  // namespace graft::adapters
