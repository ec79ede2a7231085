#include "comm/ordered_reduce.h"

#include <gtest/gtest.h>

#include <cmath>

#include "comm/crc32c.h"

namespace graft::comm {
namespace {

// 1e8 + 1 - 1e8 + 1 in float32 is 1 from left to right, and 2 or 0 in other orders.
TEST(ReduceInRankOrder, AddsFromLeftToRightWhateverThePlaceOfTheResult) {
  for (int rank = 0; rank < 4; ++rank) {
    float values[4] = {1e8f, 1.0f, -1e8f, 1.0f};
    std::vector<void*> parts;
    for (float& value : values) parts.push_back(&value);
    ReduceInRankOrder(DType::kFloat32, ReduceOp::kSum, 1, &values[rank], parts);
    EXPECT_EQ(values[rank], 1.0f) << "result in the place of rank " << rank;
  }
}

TEST(ReduceInRankOrder, MaxAndMinOfZerosDoNotDependOnThePlaceOfTheResult) {
  for (const ReduceOp op : {ReduceOp::kMax, ReduceOp::kMin}) {
    for (int rank = 0; rank < 2; ++rank) {
      double values[2] = {-0.0, 0.0};
      ReduceInRankOrder(DType::kFloat64, op, 1, &values[rank], {&values[0], &values[1]});
      EXPECT_TRUE(std::signbit(values[rank]));
    }
  }
}

TEST(ReduceInRankOrder, KeepsAllBitsOfInt64) {
  int64_t a = (int64_t{1} << 60) + 1;
  int64_t b = 2;
  ReduceInRankOrder(DType::kInt64, ReduceOp::kSum, 1, &a, {&a, &b});
  EXPECT_EQ(a, (int64_t{1} << 60) + 3);
}

TEST(Crc32c, MatchesPublishedVectors) {
  // The check value of the catalogue and the vectors of RFC 3720, appendix B.4.
  EXPECT_EQ(Crc32c("123456789", 9), 0xE3069283u);
  unsigned char bytes[32] = {};
  EXPECT_EQ(Crc32c(bytes, 32), 0x8A9136AAu);
  for (unsigned char& byte : bytes) byte = 0xFF;
  EXPECT_EQ(Crc32c(bytes, 32), 0x62A8AB43u);
  for (int i = 0; i < 32; ++i) bytes[i] = static_cast<unsigned char>(i);
  EXPECT_EQ(Crc32c(bytes, 32), 0x46DD794Eu);
  EXPECT_EQ(Crc32c(bytes, 0), 0u);
}

}  // namespace
}  // namespace graft::comm
