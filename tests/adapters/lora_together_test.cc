#include "adapters/lora_together.h"

#include <gtest/gtest.h>

#include "adapters/lora_function.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

constexpr double kScales[] = {0.75, 2.0, 1.0};

// Three linears of different ranks and widths on one input.
struct Linears {
  Linears(at::ScalarType dtype, at::ScalarType master) {
    at::manual_seed(5);
    x = at::randn({9, 6}).to(dtype).requires_grad_();
    for (const auto& [rank, out] : {std::pair<int64_t, int64_t>{3, 7}, {2, 5}, {4, 6}}) {
      a.push_back(at::randn({rank, 6}).to(master).requires_grad_());
      b.push_back(at::randn({out, rank}).to(master).requires_grad_());
      y.push_back(at::randn({9, out}).to(dtype).requires_grad_());
      dy.push_back(at::randn({9, out}).to(dtype));
    }
  }
  std::vector<torch::Tensor> Leaves() const {
    std::vector<torch::Tensor> leaves = {x};
    for (const auto* some : {&a, &b, &y}) leaves.insert(leaves.end(), some->begin(), some->end());
    return leaves;
  }
  // The edited y of each linear, then the gradients of all leaves.
  template <typename Edit>
  std::vector<torch::Tensor> Run(const Edit& edit) const {
    std::vector<torch::Tensor> results;
    torch::Tensor loss = at::zeros({}, at::kDouble);
    for (size_t i = 0; i < a.size(); ++i) {
      results.push_back(edit(i, y[i] * 1));
      loss = loss + (results.back() * dy[i]).to(at::kDouble).sum();
    }
    for (const torch::Tensor& leaf : Leaves()) leaf.mutable_grad() = torch::Tensor();
    loss.backward();
    for (const torch::Tensor& leaf : Leaves()) results.push_back(leaf.grad());
    return results;
  }
  std::vector<torch::Tensor> Apart() const {
    return Run([this](size_t i, torch::Tensor out) {
      return LoraEdit({x, nullptr}, std::move(out), a[i], b[i],
                      {kScales[i], std::nullopt, x.scalar_type(), {}});
    });
  }
  std::vector<torch::Tensor> Together(std::shared_ptr<models::Rebuilder> rebuilder) const {
    const LoraTogether together(a, x.scalar_type());
    models::SiteContext context;
    auto results = Run([&](size_t i, torch::Tensor out) {
      const auto t = together.Project(i, {x, rebuilder}, context);
      EXPECT_TRUE(t.has_value());
      return AddProjected(std::move(out), *t, b[i], kScales[i]);
    });
    EXPECT_TRUE(context.scratch.empty());
    return results;
  }

  torch::Tensor x;
  std::vector<torch::Tensor> a, b, y, dy;
};

TEST(LoraTogether, GivesWhatSeparateProductsGive) {
  struct Row {
    at::ScalarType dtype, master;
    double tolerance;
  };
  for (const Row& row : {Row{at::kDouble, at::kDouble, 1e-14}, Row{at::kFloat, at::kFloat, 1e-6},
                         Row{at::kBFloat16, at::kFloat, 1e-2}}) {
    const Linears linears(row.dtype, row.master);
    const auto want = linears.Apart(), got = linears.Together(nullptr);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(got[i].scalar_type(), want[i].scalar_type()) << i;
      EXPECT_LT(RelativeError(got[i], want[i]), row.tolerance) << row.dtype << " " << i;
    }
  }
}

TEST(LoraTogether, AsksForTheInputOnceAndKeepsNoneWithARebuilder) {
  const Linears linears(at::kFloat, at::kFloat);
  const auto rebuilder = std::make_shared<CountingRebuilder>(linears.x.detach());
  const auto want = linears.Apart(), got = linears.Together(rebuilder);
  for (size_t i = 0; i < want.size(); ++i) EXPECT_LT(RelativeError(got[i], want[i]), 1e-6) << i;
  EXPECT_EQ(rebuilder->calls, 1);
}

TEST(LoraTogether, AnotherInputIsNotTakenForTheFirst) {
  const Linears linears(at::kFloat, at::kFloat);
  const LoraTogether together(linears.a, at::kFloat);
  models::SiteContext context;
  EXPECT_TRUE(together.Project(0, {linears.x, nullptr}, context).has_value());
  EXPECT_FALSE(together.Project(1, {linears.x.clone(), nullptr}, context).has_value());
  EXPECT_TRUE(together.Project(1, {linears.x, nullptr}, context).has_value());
  EXPECT_FALSE(together.Project(1, {linears.x, nullptr}, context).has_value());  // used up
}

}  // namespace
}  // namespace graft::adapters
