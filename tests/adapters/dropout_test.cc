#include "adapters/dropout.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

constexpr models::SiteId kSite = {3, models::Role::kFfnDown};

torch::Tensor MaskOf(const models::MicroBatch& batch, double p, int64_t features = 70,
                     models::SiteId site = kSite, uint64_t seed = 5) {
  const auto mask = at::ones({batch.num_rows(), features});
  DropoutMask(seed, RandomPurpose::kAdapterDropout, site, p, batch).ApplyInPlace({mask});
  return mask;
}

// methods.md 1.2, element by element from the scalar generator.
TEST(Dropout, FollowsTheWrittenRule) {
  auto batch = BatchOf({3, 2}, int64_t{1} << 33, /*step=*/4);
  const auto mask = MaskOf(batch, 0.3);
  const uint64_t key = PhiloxKey(5, RandomPurpose::kAdapterDropout, 4, 3, 6);
  for (const auto& segment : batch.segments) {
    for (int64_t t = 0; t < segment.length; ++t) {
      for (int64_t f = 0; f < 70; ++f) {
        const auto id = static_cast<uint64_t>(segment.sample_id);
        const auto block = Philox(key, {static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32),
                                        static_cast<uint32_t>(t), static_cast<uint32_t>(f / 4)});
        const bool dropped = block[static_cast<size_t>(f % 4)] < 1288490189u;  // 0.3 * 2^32
        EXPECT_FLOAT_EQ(mask[segment.begin + t][f].item<float>(), dropped ? 0.0f : 1.0f / 0.7f);
      }
    }
  }
}

TEST(Dropout, DependsOnNeitherPackingNorSplit) {
  const auto together = MaskOf(BatchOf({4, 5, 3}, 10), 0.5);
  const auto first = MaskOf(BatchOf({4}, 10), 0.5);
  const auto rest = MaskOf(BatchOf({5, 3}, 11), 0.5);
  EXPECT_TRUE(at::equal(together, at::cat({first, rest})));
}

TEST(Dropout, StepLayerSiteSeedAndSampleChangeIt) {
  const auto mask = MaskOf(BatchOf({8}), 0.5);
  EXPECT_FALSE(at::equal(mask, MaskOf(BatchOf({8}, 0, 2), 0.5)));
  EXPECT_FALSE(at::equal(mask, MaskOf(BatchOf({8}, 1), 0.5)));
  EXPECT_FALSE(at::equal(mask, MaskOf(BatchOf({8}), 0.5, 70, {4, models::Role::kFfnDown})));
  EXPECT_FALSE(at::equal(mask, MaskOf(BatchOf({8}), 0.5, 70, {3, models::Role::kFfnUp})));
  EXPECT_FALSE(at::equal(mask, MaskOf(BatchOf({8}), 0.5, 70, kSite, 6)));
}

TEST(Dropout, DropsTheWantedShareAndKeepsTheMean) {
  const auto mask = MaskOf(BatchOf({500}), 0.2, 400);
  EXPECT_NEAR(mask.eq(0).to(at::kFloat).mean().item<double>(), 0.2, 0.004);
  EXPECT_NEAR(mask.mean().item<double>(), 1.0, 0.005);
}

TEST(Dropout, BfloatAndSeveralTensorsGetTheSameMask) {
  const auto batch = BatchOf({6});
  const auto a = at::ones({6, 20}), b = at::ones({6, 20}).to(at::kBFloat16);
  DropoutMask(5, RandomPurpose::kAdapterDropout, kSite, 0.5, batch).ApplyInPlace({a, b});
  EXPECT_TRUE(at::equal(a, b.to(at::kFloat)));
  EXPECT_TRUE(at::equal(a, MaskOf(batch, 0.5, 20)));
}

}  // namespace
}  // namespace graft::adapters
