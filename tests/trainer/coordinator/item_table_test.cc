#include "trainer/coordinator/item_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/status.h"

namespace graft::trainer {
namespace {

constexpr double kAny = std::numeric_limits<double>::infinity();

ItemTable MakeTable() { return ItemTable({5, 9, 1, 9}, 100, LeaseRules()); }

TEST(ItemTable, TheCostliestComesFirstAndEqualOnesInListOrder) {
  ItemTable table = MakeTable();
  std::vector<int> order;
  while (const auto next = table.Next(kAny, 0, true)) {
    order.push_back(*next);
    table.Grant(*next, 0, 0, 1, 0);
  }
  EXPECT_THAT(order, ::testing::ElementsAre(1, 3, 0, 2));
}

TEST(ItemTable, ALimitTakesTheCostliestWithinElseTheCheapest) {
  ItemTable table = MakeTable();
  EXPECT_EQ(table.Next(8.9, 0, true), 0);
  EXPECT_EQ(table.Next(9, 0, true), 1);
  EXPECT_EQ(table.Next(1, 0, true), 2);
  EXPECT_EQ(table.Next(0.5, 0, true), 2);
  table.Finish(2);
  EXPECT_EQ(table.Next(0.5, 0, true), 0);
}

TEST(ItemTable, ALeaseHoldsThreeTimesTheExpectedTimeButAMinute) {
  ItemTable table = MakeTable();
  EXPECT_EQ(table.Grant(0, 0, 10, 15, 0).deadline, 10 + 60);
  EXPECT_EQ(table.Grant(1, 0, 10, 30, 0).deadline, 10 + 90);
  EXPECT_EQ(table.Grant(2, 0, 10, 30, 20).deadline, 10 + 150);
  EXPECT_EQ(table.Grant(3, 0, 10, 0, 0).deadline, 10 + 600);
}

TEST(ItemTable, ARenewalHoldsForThreeIntervalsAndNeverShortens) {
  ItemTable table = MakeTable();
  const int64_t epoch = table.Grant(0, 0, 0, 1, 0).epoch;
  table.Renew(epoch, 5, 0);
  EXPECT_EQ(table.FindLease(epoch)->deadline, 60);
  table.Renew(epoch, 50, 10);
  EXPECT_EQ(table.FindLease(epoch)->deadline, 80);
  EXPECT_TRUE(table.Expired(80).empty());
  ASSERT_EQ(table.Expired(80.1).size(), 1u);
  // Micro-batches may last longer than the time between two renewals.
  table.Renew(epoch, 80, 100);
  EXPECT_EQ(table.FindLease(epoch)->deadline, 380);
  table.Release(epoch);
  EXPECT_EQ(table.state(0), ItemState::kTodo);
  EXPECT_EQ(table.CheckInvariants(), "");
}

TEST(ItemTable, EpochsRiseFromTheFirst) {
  ItemTable table = MakeTable();
  EXPECT_EQ(table.Grant(0, 0, 0, 1, 0).epoch, 100);
  table.Release(100);
  EXPECT_EQ(table.Grant(0, 0, 0, 1, 0).epoch, 101);
  EXPECT_EQ(table.FindLease(100), nullptr);
}

TEST(ItemTable, AnItemHasAtMostTwoLeasesAndIsToDoWithoutAny) {
  ItemTable table = MakeTable();
  const int64_t first = table.Grant(0, 0, 0, 1, 0).epoch;
  const int64_t second = table.Grant(0, 1, 0, 1, 0).epoch;
  EXPECT_THROW(table.Grant(0, 2, 0, 1, 0), StatusError);
  table.Release(first);
  EXPECT_EQ(table.state(0), ItemState::kLeased);
  table.Release(second);
  EXPECT_EQ(table.state(0), ItemState::kTodo);
}

TEST(ItemTable, FinishingEndsAllLeasesAndCountsTheCost) {
  ItemTable table = MakeTable();
  table.Grant(1, 0, 0, 1, 0);
  table.Grant(1, 1, 0, 1, 0);
  EXPECT_EQ(table.open_cost(), 24);
  table.Finish(1);
  EXPECT_EQ(table.open_cost(), 15);
  EXPECT_TRUE(table.Leases().empty());
  EXPECT_THROW(table.Finish(1), StatusError);
  EXPECT_EQ(table.CheckInvariants(), "");
}

TEST(ItemTable, ThreeFailuresOnTwoWorkersGiveAnItemUp) {
  ItemTable table = MakeTable();
  EXPECT_FALSE(table.CountFailure(0, 4, false, false, "a"));
  EXPECT_FALSE(table.MayTry(0, 4, false));
  EXPECT_TRUE(table.MayTry(0, 4, true));
  EXPECT_TRUE(table.MayTry(0, 5, false));
  EXPECT_FALSE(table.CountFailure(0, 4, false, false, "b"));
  EXPECT_FALSE(table.CountFailure(0, 4, false, false, "c"));
  EXPECT_TRUE(table.CountFailure(0, 5, true, false, "d"));
  EXPECT_EQ(table.state(0), ItemState::kQuarantined);
  EXPECT_TRUE(table.failures(0).numeric);
  EXPECT_EQ(table.failures(0).reason, "d");
  EXPECT_THAT(table.Quarantined(), ::testing::ElementsAre(0));
  EXPECT_FALSE(table.all_settled());
  for (const int item : {1, 2, 3}) table.Finish(item);
  EXPECT_TRUE(table.all_settled());
  // A result that comes after all is a result.
  table.Finish(0);
  EXPECT_EQ(table.num_quarantined(), 0);
  EXPECT_EQ(table.CheckInvariants(), "");
}

TEST(ItemTable, ThreeFailuresOnTheOnlyWorkerGiveAnItemUp) {
  ItemTable table = MakeTable();
  EXPECT_FALSE(table.CountFailure(0, 4, false, true, "a"));
  EXPECT_FALSE(table.CountFailure(0, 4, false, true, "b"));
  EXPECT_TRUE(table.CountFailure(0, 4, false, true, "c"));
}

}  // namespace
}  // namespace graft::trainer
