#include "adapters/prompt_pool.h"

#include <gtest/gtest.h>

#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

constexpr Pooling kAll[] = {Pooling::kMean, Pooling::kLast, Pooling::kMax, Pooling::kAttention};

// Three samples: virtual rows in front, no prompt, a prompt that is the whole text.
std::vector<models::Segment> Segments() {
  return {{1, 0, 6, 3, 2}, {2, 6, 2, 0, 0}, {3, 8, 4, 4, 0}};
}

torch::Tensor PlainPool(const torch::Tensor& x, Pooling pooling, const torch::Tensor& w) {
  std::vector<torch::Tensor> pooled;
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{2, 3}, {6, 0}, {8, 4}}) {
    const auto rows = x.narrow(0, first, count);
    if (count == 0) {
      pooled.push_back(at::zeros({x.size(1)}, at::kDouble));
    } else if (pooling == Pooling::kMean) {
      pooled.push_back(rows.mean(0));
    } else if (pooling == Pooling::kLast) {
      pooled.push_back(rows[count - 1]);
    } else if (pooling == Pooling::kMax) {
      pooled.push_back(std::get<0>(rows.max(0)));
    } else {
      const auto scores = at::mv(rows, w) / std::sqrt(static_cast<double>(x.size(1)));
      pooled.push_back(at::mv(rows.t(), at::softmax(scores, 0)));
    }
  }
  return at::stack(pooled);
}

TEST(PoolPrompts, EqualsPlainAutogradInFloat64) {
  at::manual_seed(3);
  const auto x = at::randn({12, 5}, at::kDouble).requires_grad_();
  const auto w = at::randn({5}, at::kDouble).requires_grad_();
  const auto g = at::randn({3, 5}, at::kDouble);
  for (const Pooling pooling : kAll) {
    const bool weighted = pooling == Pooling::kAttention;
    const auto run = [&](const torch::Tensor& out) {
      x.mutable_grad() = w.mutable_grad() = torch::Tensor();
      out.backward(g);
      return std::pair{x.grad(), w.grad()};
    };
    const auto ours =
        PoolPrompts({x, nullptr}, Segments(), pooling, weighted ? w : torch::Tensor());
    const auto plain = PlainPool(x, pooling, w);
    EXPECT_LT(RelativeError(ours, plain), 1e-12);
    const auto [dx, dw] = run(ours);
    const auto [plain_dx, plain_dw] = run(plain);
    EXPECT_LT(RelativeError(dx, plain_dx), 1e-12);
    ASSERT_EQ(dw.defined(), weighted);
    if (weighted) {
      EXPECT_LT(RelativeError(dw, plain_dw), 1e-12);
    }
  }
}

TEST(PoolPrompts, OnlyPromptRowsCount) {
  at::manual_seed(3);
  const auto x = at::randn({12, 5});
  const auto w = at::randn({5});
  auto changed = x.clone();
  for (const int64_t row : {0, 1, 5, 6, 7}) changed[row].fill_(100.0);
  for (const Pooling pooling : kAll) {
    const auto weight = pooling == Pooling::kAttention ? w : torch::Tensor();
    EXPECT_TRUE(at::equal(PoolPrompts({x, nullptr}, Segments(), pooling, weight),
                          PoolPrompts({changed, nullptr}, Segments(), pooling, weight)));
  }
}

TEST(PoolPrompts, BfloatIsPooledInFloat32) {
  const auto x = at::randn({12, 5}).to(at::kBFloat16);
  const auto pooled = PoolPrompts({x, nullptr}, Segments(), Pooling::kMean);
  EXPECT_EQ(pooled.scalar_type(), at::kFloat);
  EXPECT_LT(RelativeError(pooled[2], x.narrow(0, 8, 4).to(at::kFloat).mean(0)), 1e-6);
}

}  // namespace
}  // namespace graft::adapters
