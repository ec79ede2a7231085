#include "trainer/summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft::trainer {
namespace {

TEST(SummaryTest, NumbersAreGrouped) {
  EXPECT_EQ(Grouped(0), "0");
  EXPECT_EQ(Grouped(123), "123");
  EXPECT_EQ(Grouped(1234567), "1,234,567");
}

TEST(SummaryTest, NeighbouringLayersBecomeRanges) {
  EXPECT_EQ(RangesText({}), "");
  EXPECT_EQ(RangesText({0, 1, 2, 5, 7, 8}), "0-2, 5, 7-8");
}

TEST(SummaryTest, ParameterLineSaysShareOfTheWhole) {
  EXPECT_EQ(ParameterLine(2000, 1000000), "trainable 2,000 of 1,000,000 parameters (0.200 %)");
}

TEST(SummaryTest, SiteTableHasOneRowPerRole) {
  const auto method = adapters::NewMethod("lora").value();
  std::vector<models::SiteSpec> sites;
  for (int layer = 0; layer < 3; ++layer) {
    sites.push_back({{layer, models::Role::kAttnQ}, "q", 64, 32});
    sites.push_back({{layer, models::Role::kAttnV}, "v", 64, 16});
  }
  const std::string table = SiteMatchTable(*method, sites);
  EXPECT_THAT(table, testing::HasSubstr("adapter lora: 6 sites"));
  EXPECT_THAT(table, testing::ContainsRegex("attn.q +3  0-2 +64 +32 +[1-9]"));
  EXPECT_THAT(table, testing::ContainsRegex("attn.v +3  0-2 +64 +16 +[1-9]"));
}

}  // namespace
}  // namespace graft::trainer
