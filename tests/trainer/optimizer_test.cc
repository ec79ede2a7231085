#include "trainer/optimizer.h"

#include <cmath>
#include <limits>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace graft::trainer {
namespace {

// Four steps of torch 2.11's torch.optim.AdamW([p], betas=(0.9, 0.95), eps=1e-6, weight_decay=WD),
// with param_groups[0]["lr"] set to kRates[i] and p.grad to kGradients[i] before step i; CLIP:
// torch.nn.utils.clip_grad_norm_([p], 1.0) first.
const std::vector<float> kStart = {0.5f, -1.0f, 2.0f, 0.0f, 3.5f};
const std::vector<double> kRates = {0.0, 0.1, 0.05, 0.2};
const std::vector<std::vector<float>> kGradients = {
    {1, -2, .5f, 0, 1e-4f}, {.25f, 3, -1, 1e-7f, 2}, {-4, .1f, 0, 1, 1}, {.3f, .3f, .3f, .3f, .3f}};

struct Case {
  const char* name;
  double weight_decay;
  double clip_norm;
  std::vector<float> values, exp_avg, exp_avg_sq;
};

const Case kCases[] = {
    {"plain",
     0.0,
     0.0,
     {0.504345417f, -1.07988703f, 2.06539917f, -0.167880386f, 3.24018407f},
     {-0.236849964f, 0.136199996f, -0.0145499958f, 0.120000012f, 0.282007307f},
     {0.810189009f, 0.582574964f, 0.0603421889f, 0.0520000011f, 0.232499987f}},
    {"decay",
     0.1,
     0.0,
     {0.488662779f, -1.0444113f, 1.99490798f, -0.167134866f, 3.12153244f},
     {-0.236849964f, 0.136199996f, -0.0145499958f, 0.120000012f, 0.282007307f},
     {0.810189009f, 0.582574964f, 0.0603421889f, 0.0520000011f, 0.232499987f}},
    {"decay and clip",
     0.1,
     1.0,
     {0.440660119f, -0.999652088f, 1.88961124f, -0.183698028f, 3.10143352f},
     {-0.0176130813f, 0.0332884043f, 0.0243080854f, 0.0512073115f, 0.0944104791f},
     {0.0550647825f, 0.0660682321f, 0.00975025445f, 0.00713742245f, 0.0199729707f}},
};

void ExpectNear(const at::Tensor& actual, const std::vector<float>& expected, const char* what) {
  EXPECT_TRUE(at::allclose(actual, at::tensor(expected), 2e-6, 1e-8)) << what << "\n" << actual;
}

TEST(AdamWTest, EqualsTorchOptim) {
  for (const Case& row : kCases) {
    at::Tensor values = at::tensor(kStart);
    AdamW optimizer(values,
                    {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-6, .weight_decay = row.weight_decay});
    for (size_t i = 0; i < kRates.size(); ++i) {
      at::Tensor gradients = at::tensor(kGradients[i]);
      gradients.mul_(ClipCoefficient(std::sqrt(SumOfSquares(gradients)), row.clip_norm));
      optimizer.Step(values, gradients, kRates[i]);
    }
    EXPECT_EQ(optimizer.updates(), 4);
    ExpectNear(values, row.values, row.name);
    ExpectNear(optimizer.exp_avg(), row.exp_avg, row.name);
    ExpectNear(optimizer.exp_avg_sq(), row.exp_avg_sq, row.name);
  }
}

TEST(AdamWTest, StageWithoutParametersStillCountsUpdates) {
  const at::Tensor empty = at::empty({0});
  AdamW optimizer(empty, {});
  optimizer.Step(empty, empty, 0.1);
  EXPECT_EQ(optimizer.updates(), 1);
  EXPECT_EQ(SumOfSquares(empty), 0.0);
}

TEST(AdamWTest, RestoredMomentsContinueBitwise) {
  at::Tensor values = at::tensor(kStart), other = at::tensor(kStart);
  AdamW whole(values, {}), first(other, {});
  for (const auto& gradient : kGradients) whole.Step(values, at::tensor(gradient), 0.01);
  first.Step(other, at::tensor(kGradients[0]), 0.01);
  AdamW second(other, {});
  second.exp_avg().copy_(first.exp_avg());
  second.exp_avg_sq().copy_(first.exp_avg_sq());
  second.set_updates(1);
  for (size_t i = 1; i < kGradients.size(); ++i)
    second.Step(other, at::tensor(kGradients[i]), 0.01);
  EXPECT_TRUE(at::equal(values, other));
}

TEST(ClipTest, CoefficientFollowsClipGradNorm) {
  EXPECT_DOUBLE_EQ(ClipCoefficient(4.0, 0.0), 1.0);
  EXPECT_DOUBLE_EQ(ClipCoefficient(0.5, 1.0), 1.0);
  EXPECT_DOUBLE_EQ(ClipCoefficient(4.0, 1.0), 1.0 / (4.0 + 1e-6));
}

// More numbers than are squared at a time.
TEST(ClipTest, SquaresOfAWholeModelAreSummed) {
  const at::Tensor gradients = at::full({(int64_t{9} << 20) + 5}, 0.5f);
  EXPECT_EQ(SumOfSquares(gradients), 0.25 * static_cast<double>(gradients.numel()));
}

TEST(ClipTest, NonFiniteGradientShowsInTheNormAndLargeOnesDoNotOverflow) {
  EXPECT_TRUE(
      std::isnan(SumOfSquares(at::tensor({1.0f, std::numeric_limits<float>::quiet_NaN()}))));
  EXPECT_TRUE(std::isinf(SumOfSquares(at::tensor({1.0f, std::numeric_limits<float>::infinity()}))));
  EXPECT_DOUBLE_EQ(std::sqrt(SumOfSquares(at::tensor({3e30f, 4e30f}))) / 5e30,
                   std::sqrt(std::pow(3e30f / 5e30, 2) + std::pow(4e30f / 5e30, 2)));
}

}  // namespace
}  // namespace graft::trainer
