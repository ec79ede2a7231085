#include "trainer/threads.h"

#include <gtest/gtest.h>

namespace graft::trainer {
namespace {

TEST(ThreadsTest, RanksThatShareCoresDivideThem) {
  const std::vector<RankCores> ranks = {
      {"a", {0, 1, 2, 3, 4}}, {"a", {0, 1, 2, 3, 4}}, {"b", {0, 1, 2, 3, 4}}};
  EXPECT_EQ(ThreadsOf(ranks, 0, 0), 2);
  EXPECT_EQ(ThreadsOf(ranks, 2, 0), 5);
  EXPECT_EQ(ThreadsOf(ranks, 0, 7), 7);
}

TEST(ThreadsTest, BoundRanksKeepTheirOwnCores) {
  const std::vector<RankCores> ranks = {{"a", {0, 1}}, {"a", {2, 3}}};
  EXPECT_EQ(ThreadsOf(ranks, 1, 0), 2);
  EXPECT_FALSE(Oversubscribed(ranks, 1, 2));
  EXPECT_TRUE(Oversubscribed(ranks, 1, 3));
}

TEST(ThreadsTest, MoreRanksThanCoresGiveOneThreadAndAWarning) {
  const std::vector<RankCores> ranks = {{"a", {0}}, {"a", {0}}};
  EXPECT_EQ(ThreadsOf(ranks, 0, 0), 1);
  EXPECT_TRUE(Oversubscribed(ranks, 0, 1));
}

}  // namespace
}  // namespace graft::trainer
