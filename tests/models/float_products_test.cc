#include "models/layers/float_products.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "models/layers/frozen_linear.h"
#include "tests/models/relative_error.h"

namespace graft::models {
namespace {

using torch::Tensor;

constexpr double kTolerance = 2e-6;

Tensor Forward(const FloatKernels& kernels, const Tensor& x, const Tensor& weight) {
  Tensor y = at::full({x.size(0), weight.size(0)}, NAN);
  kernels.forward({x.const_data_ptr<float>(), weight.const_data_ptr<float>(), y.data_ptr<float>(),
                   x.size(0), x.size(1), y.size(1)},
                  0, y.size(0), 0, y.size(1));
  return y;
}

Tensor Transposed(const FloatKernels& kernels, const Tensor& dy, const Tensor& weight) {
  Tensor dx = at::full({dy.size(0), weight.size(1)}, NAN);
  for (int64_t column = 0; column < dx.size(1); column += kPanel) {
    kernels.transposed({dy.const_data_ptr<float>(), weight.const_data_ptr<float>(),
                        dx.data_ptr<float>(), dy.size(0), dy.size(1), dx.size(1)},
                       0, dx.size(0), column, std::min(column + kPanel, dx.size(1)));
  }
  return dx;
}

// Widths around the kernels' lanes, tiles, panels and chains.
const std::vector<std::pair<int64_t, int64_t>> kShapes = {
    {1, 1}, {15, 3}, {16, 4}, {50, 33}, {64, 128}, {130, 129}, {576, 192}};

TEST(FloatProductsTest, EveryInstructionSetGivesTheProduct) {
  at::manual_seed(7);
  for (const FloatKernels& kernels : AvailableFloatKernels()) {
    for (const auto& [in, out] : kShapes) {
      const Tensor weight = at::randn({out, in}), x = at::randn({11, in}),
                   dy = at::randn({11, out});
      EXPECT_LE(RelativeError(Forward(kernels, x, weight), at::mm(x, weight.t())), kTolerance)
          << kernels.instructions << " " << in << " " << out;
      EXPECT_LE(RelativeError(Transposed(kernels, dy, weight), at::mm(dy, weight)), kTolerance)
          << kernels.instructions << " " << in << " " << out;
    }
  }
}

// A row alone has the bits that it has among others, few or many.
TEST(FloatProductsTest, ARowDoesNotDependOnItsNeighbours) {
  at::manual_seed(7);
  for (const auto& [in, out] : kShapes) {
    const Tensor weight = at::randn({out, in}), x = at::randn({300, in}),
                 dy = at::randn({300, out});
    const auto frozen = MakeFrozenWeight(weight);
    const Tensor y = frozen->Multiply(x, torch::kFloat32);
    const Tensor dx = frozen->MultiplyTransposed(dy, torch::kFloat32);
    for (const auto& [row, rows] : {std::pair(0, 1), {7, 11}, {251, 3}, {100, 130}, {299, 1}}) {
      EXPECT_TRUE(at::equal(MultiplyFloat(x.narrow(0, row, rows), weight), y.narrow(0, row, rows)))
          << in << " " << out << " " << row;
      EXPECT_TRUE(at::equal(MultiplyFloatTransposed(dy.narrow(0, row, rows), weight),
                            dx.narrow(0, row, rows)))
          << in << " " << out << " " << row;
    }
  }
}

// Sums of 4,096 products: the error of short chains, an eighth of that of one chain.
TEST(FloatProductsTest, LongSumsKeepTheirPrecision) {
  at::manual_seed(7);
  const Tensor weight = at::rand({16, 4096}), x = at::rand({4, 4096});
  const auto exact = [](const Tensor& a, const Tensor& b) {
    return at::mm(a.to(torch::kFloat64), b.to(torch::kFloat64));
  };
  EXPECT_LE(RelativeError(MultiplyFloat(x, weight), exact(x, weight.t())), 3e-7);
  const Tensor tall = weight.t().contiguous();
  EXPECT_LE(RelativeError(MultiplyFloatTransposed(x, tall), exact(x, tall)), 3e-7);
}

}  // namespace
}  // namespace graft::models
