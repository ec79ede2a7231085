#include "base/median.h"

#include <gtest/gtest.h>

#include "base/status.h"

namespace graft {
namespace {

TEST(Median, IsTheMiddleOrTheMeanOfTheTwoThere) {
  EXPECT_EQ(Median({4}), 4);
  EXPECT_EQ(Median({9, 1}), 5);
  EXPECT_EQ(Median({7, -2, 3}), 3);
  EXPECT_EQ(Median({8, 1, 100, 2}), 5);
  EXPECT_EQ(Median({3, 3, 9, 1, 3, 0}), 3);
  EXPECT_THROW(Median({}), StatusError);
}

}  // namespace
}  // namespace graft
