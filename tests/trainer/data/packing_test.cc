#include "trainer/data/packing.h"

#include <algorithm>
#include <numeric>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft::trainer {
namespace {

using ::testing::ElementsAre;

std::vector<int64_t> UpTo(int64_t count) {
  std::vector<int64_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), int64_t{0});
  return order;
}

TEST(PackingTest, FirstFitDecreasingByHand) {
  // Longest first: 7 -> row A; 5 -> row B; 4 -> row B is 9 of 10; 3 -> A is full; 2 -> row C; 1 ->
  // B.
  const std::vector<int64_t> lengths = {3, 5, 1, 7, 4, 2};
  EXPECT_THAT(PackRows(UpTo(6), lengths, 10),
              ElementsAre(ElementsAre(0, 3), ElementsAre(1, 2, 4), ElementsAre(5)));
}

TEST(PackingTest, FollowsTheOrderOfTheEpoch) {
  const std::vector<int64_t> lengths = {6, 4, 6, 4};
  EXPECT_THAT(PackRows({3, 2, 1, 0}, lengths, 10),
              ElementsAre(ElementsAre(3, 2), ElementsAre(1, 0)));
}

// Straight from the definition, in quadratic time.
int64_t CountRowsNaively(std::vector<int64_t> lengths, int64_t row_length) {
  std::sort(lengths.begin(), lengths.end(), std::greater<>());
  std::vector<int64_t> rows;
  for (const int64_t length : lengths) {
    const auto row = std::find_if(rows.begin(), rows.end(),
                                  [&](int64_t used) { return used + length <= row_length; });
    if (row == rows.end()) {
      rows.push_back(length);
    } else {
      *row += length;
    }
  }
  return static_cast<int64_t>(rows.size());
}

TEST(PackingTest, RandomLengthsAgainstTheDefinition) {
  std::mt19937_64 random(1);
  for (const int64_t count : {1, 2, 37, 4096}) {
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < count; ++i) lengths.push_back(1 + static_cast<int64_t>(random() % 64));
    const auto rows = PackRows(UpTo(count), lengths, 64);
    EXPECT_EQ(static_cast<int64_t>(rows.size()), CountRowsNaively(lengths, 64));
    std::vector<int64_t> seen;
    for (const auto& row : rows) {
      int64_t tokens = 0;
      for (const int64_t sample : row) tokens += lengths[static_cast<std::size_t>(sample)];
      EXPECT_LE(tokens, 64);
      seen.insert(seen.end(), row.begin(), row.end());
    }
    std::sort(seen.begin(), seen.end());
    EXPECT_EQ(seen, UpTo(count));
  }
}

TEST(PackingTest, ARowStaysInItsWindow) {
  const std::vector<int64_t> lengths(static_cast<std::size_t>(kPackingWindow + 1), 1);
  const auto rows = PackRows(UpTo(kPackingWindow + 1), lengths, 2 * kPackingWindow);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(static_cast<int64_t>(rows[0].size()), kPackingWindow);
  EXPECT_THAT(rows[1], ElementsAre(kPackingWindow));
}

}  // namespace
}  // namespace graft::trainer
