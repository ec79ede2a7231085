#include "adapters/row_scale.h"

#include <gtest/gtest.h>

#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

// The vector of each row, as plain autograd wants it.
torch::Tensor PerRow(const torch::Tensor& scales, const std::vector<int64_t>& ends) {
  std::vector<torch::Tensor> rows;
  int64_t begin = 0;
  for (size_t s = 0; s < ends.size(); begin = ends[s++]) {
    rows.push_back(scales[static_cast<int64_t>(s)].expand({ends[s] - begin, scales.size(1)}));
  }
  return at::cat(rows);
}

TEST(ScaleRows, EqualsPlainAutogradInFloat64) {
  at::manual_seed(4);
  const std::vector<int64_t> ends = {2, 2, 9};  // the second sample has no row
  for (const int64_t width : {1, 5, 600}) {
    const auto x = at::randn({9, width}, at::kDouble).requires_grad_();
    const auto l = at::randn({3, width}, at::kDouble).requires_grad_();
    const auto g = at::randn({9, width}, at::kDouble);
    const auto run = [&](const torch::Tensor& out) {
      x.mutable_grad() = l.mutable_grad() = torch::Tensor();
      out.backward(g);
      return std::vector<torch::Tensor>{out, x.grad(), l.grad()};
    };
    const auto got = run(ScaleRows({x, nullptr}, l, ends)), expected = run(x * PerRow(l, ends));
    for (size_t i = 0; i < 3; ++i) EXPECT_LT(RelativeError(got[i], expected[i]), 1e-12);
  }
}

TEST(ScaleRows, BfloatIsRoundedOnceAndSumsAreFloat32) {
  at::manual_seed(4);
  const auto x = at::randn({400, 5}).to(at::kBFloat16);
  const auto l = (1 + 0.3 * at::randn({2, 5})).requires_grad_();
  const auto g = at::randn({400, 5}).to(at::kBFloat16);
  const std::vector<int64_t> ends = {150, 400};
  const auto y = ScaleRows({x, nullptr}, l, ends);
  EXPECT_TRUE(at::equal(y, (x.to(at::kFloat) * PerRow(l, ends)).to(at::kBFloat16)));
  y.backward(g);
  const auto products = g.to(at::kDouble) * x.to(at::kDouble);
  const auto sums =
      at::stack({products.narrow(0, 0, 150).sum(0), products.narrow(0, 150, 250).sum(0)});
  EXPECT_LT(RelativeError(l.grad(), sums), 1e-5);
}

class CountedRebuilder : public models::Rebuilder {
 public:
  explicit CountedRebuilder(torch::Tensor value) : value_(std::move(value)) {}
  torch::Tensor Get() override {
    ++gets;
    return value_;
  }
  void Release() override {}
  int gets = 0;

 private:
  torch::Tensor value_;
};

TEST(ScaleRows, TakesTheInputFromItsRebuilder) {
  const auto value = at::randn({4, 3});
  const auto rebuilder = std::make_shared<CountedRebuilder>(value);
  const auto l = at::ones({1, 3}).requires_grad_();
  auto x = value.clone();
  const auto y = ScaleRows({x, rebuilder}, l, {4});
  x.zero_();  // nothing keeps it
  y.sum().backward();
  EXPECT_EQ(rebuilder->gets, 1);
  EXPECT_LT(RelativeError(l.grad()[0], value.sum(0)), 1e-6);
}

}  // namespace
}  // namespace graft::adapters
