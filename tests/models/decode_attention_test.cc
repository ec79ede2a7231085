// Attention of decoding rows to a cache: on the host and on the way of devices, against LibTorch's
// attention over the whole sequence. tests/gpu has the kernels.
#include <set>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/status.h"
#include "models/layers/device_decode_attention.h"
#include "models/layers/kv_places.h"
#include "tests/models/decode_attention_case.h"
#include "tests/models/relative_error.h"

namespace graft::models {
namespace {

class DecodeAttentionTest : public ::testing::TestWithParam<DecodeHeads> {};

TEST_P(DecodeAttentionTest, OperatorsGiveWhatTheHostGives) {
  for (const auto& [dtype, tolerance] :
       {std::pair(torch::kFloat32, 2e-6), std::pair(torch::kBFloat16, 8e-3)}) {
    const DecodeCase host(GetParam(), /*rows=*/40, dtype, torch::kCPU);
    const torch::Tensor want = host.OnHost();
    const DecodeCase device(GetParam(), /*rows=*/40, dtype, torch::kCPU);
    EXPECT_LT(RelativeError(device.OnDevice(), want), tolerance);
    EXPECT_TRUE(device.HasStoredItsRows());
  }
}

INSTANTIATE_TEST_SUITE_P(Heads, DecodeAttentionTest, ::testing::ValuesIn(kDecodeHeads));

TEST(KvPlacesTest, ChildrenTakeFreePlacesAndNeverMoreThanThereAre) {
  KvPlaces places(4);
  EXPECT_EQ(places.Take(10), 0);
  EXPECT_EQ(places.Take(11), 1);
  EXPECT_EQ(places.Take(20), 2);
  EXPECT_EQ(places.Take(10), 0);
  // 11 and 12 go on from 10: 11's own place is free before they take one.
  const auto copies = places.Fork({{10, 10}, {10, 11}, {10, 12}});
  ASSERT_EQ(copies.size(), 2u);
  EXPECT_EQ(copies[0].from, 0);
  EXPECT_EQ(copies[1].from, 0);
  EXPECT_EQ(places.Of(12), 0);  // the last child takes the parent's over
  EXPECT_EQ(std::set<int64_t>({places.Of(10), places.Of(11)}), std::set<int64_t>({1, 3}));
  EXPECT_THROW(places.Take(30), StatusError);
  places.Drop(20);
  EXPECT_EQ(places.Take(30), 2);
  EXPECT_THROW(places.Of(20), StatusError);
  // All change places at once: nothing is copied.
  EXPECT_TRUE(places.Fork({{10, 11}, {11, 10}}).empty());
}

}  // namespace
}  // namespace graft::models
