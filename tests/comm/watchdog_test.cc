#include "comm/watchdog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

int64_t g_now = 0;
int64_t TestClock() { return g_now; }

// The ranks of one node in one process, with a clock that the test moves.
class WatchdogTest : public ::testing::Test {
 protected:
  struct Rank {
    Heartbeat heartbeat{&TestClock};
    FlightRecorder recorder{&TestClock};
    std::unique_ptr<Watchdog> watchdog;
  };

  void SetUp() override {
    g_now = NanosOf(1000);
    for (int r = 0; r < 3; ++r) {
      Rank& rank = ranks_[r];
      rank.recorder.AddGroup("world", r, 3);
      rank.watchdog = std::make_unique<Watchdog>(WatchdogIdentity{r, 3, "node"}, rank.heartbeat,
                                                 rank.recorder, board_, r);
      rank.watchdog->Stamp(g_now);
    }
  }

  // Ticks the ranks of `awake` every quarter second; the first finding ends it.
  std::optional<WatchdogFinding> Run(double seconds, const std::vector<int>& awake) {
    for (const int64_t end = g_now + NanosOf(seconds); g_now < end; g_now += NanosOf(0.25)) {
      for (const int rank : awake) {
        if (auto finding = ranks_[rank].watchdog->Tick(g_now)) return finding;
      }
    }
    return std::nullopt;
  }

  // `rank` waits in an AllReduce.
  void LetWait(int rank, int64_t number = 1) {
    FlightEntry entry;
    entry.group = 0;
    entry.op = "AllReduce";
    entry.type = "float64";
    entry.bytes = 104;
    entry.number = number;
    ranks_[rank].recorder.Wait(ranks_[rank].recorder.Begin(entry));
  }

  const std::shared_ptr<NodeBoard> board_ = NodeBoard::InMemory(4);  // one place stays empty
  Rank ranks_[3];
};

TEST_F(WatchdogTest, QuietWhileAllRun) { EXPECT_FALSE(Run(3600, {0, 1, 2}).has_value()); }

TEST_F(WatchdogTest, AStoppedProcessIsFoundIn20To21Seconds) {
  ranks_[1].heartbeat.Enter(Phase::kStep, 12);
  EXPECT_FALSE(Run(5, {0, 1, 2}).has_value());
  LetWait(0);
  const double begin = SecondsOf(g_now);
  const auto finding = Run(100, {0, 2});
  ASSERT_TRUE(finding.has_value());
  EXPECT_GT(SecondsOf(g_now) - begin, 19);
  EXPECT_LT(SecondsOf(g_now) - begin, 21);
  EXPECT_EQ(finding->kind, WatchdogFinding::kSilent);
  EXPECT_EQ(finding->rank, 1);
  EXPECT_THAT(
      finding->text,
      AllOf(HasSubstr("rank 1 (process "), HasSubstr("on node) has not run for 20."),
            HasSubstr("last seen in phase step, step 12"),
            HasSubstr("rank 0, phase idle, waits 20."), HasSubstr("in AllReduce 1 of world")));
}

TEST_F(WatchdogTest, ARankThatLeftIsNotMissed) {
  EXPECT_FALSE(Run(1, {0, 1, 2}).has_value());
  ranks_[1].watchdog->Leave();
  EXPECT_FALSE(Run(100, {0, 2}).has_value());
}

// SIGSTOP of all, a suspended allocation, a debugger: time in which nobody ran counts for nobody.
TEST_F(WatchdogTest, AFrozenJobGoesOn) {
  for (Rank& rank : ranks_) rank.heartbeat.Enter(Phase::kSave, 1);  // limit 600 s
  EXPECT_FALSE(Run(300, {0, 1, 2}).has_value());
  g_now += NanosOf(5000);
  EXPECT_FALSE(Run(299, {0, 1, 2}).has_value());
  const auto finding = Run(3, {0, 1, 2});
  ASSERT_TRUE(finding.has_value()) << "what ran before and after still counts";
  EXPECT_EQ(finding->kind, WatchdogFinding::kLate);
}

TEST_F(WatchdogTest, AHangIsFoundAtItsLimitAndTheRankThatWaitsForNobodyIsBlamed) {
  for (int r = 0; r < 3; ++r) {
    ranks_[r].heartbeat.set_limits({.step_seconds = 10});
    ranks_[r].heartbeat.Enter(Phase::kStep, 4);
    if (r != 2) LetWait(r);
  }
  const double begin = SecondsOf(g_now);
  const auto finding = Run(100, {0, 1, 2});
  ASSERT_TRUE(finding.has_value());
  EXPECT_LT(SecondsOf(g_now) - begin, 15);
  EXPECT_EQ(finding->kind, WatchdogFinding::kLate);
  EXPECT_EQ(finding->rank, 2);
  EXPECT_THAT(finding->text,
              AllOf(HasSubstr("limit 10.0 s"), HasSubstr("rank 0, phase step, step 4"),
                    HasSubstr("in AllReduce 1 of world (step -1, 104 bytes float64)"),
                    HasSubstr("rank 2 waits for nobody and is behind")));
}

TEST_F(WatchdogTest, AnotherRanksAlarmIsHeard) {
  EXPECT_TRUE(ranks_[0].watchdog->RaiseAlarm());
  EXPECT_FALSE(ranks_[1].watchdog->RaiseAlarm());
  EXPECT_FALSE(ranks_[0].watchdog->Tick(g_now).has_value());
  const auto finding = ranks_[1].watchdog->Tick(g_now);
  ASSERT_TRUE(finding.has_value());
  EXPECT_EQ(finding->kind, WatchdogFinding::kAlarm);
  EXPECT_EQ(finding->rank, 0);
  ranks_[0].watchdog->NoteDumped();
  EXPECT_FALSE(ranks_[0].watchdog->AllDumped(2));
  ranks_[1].watchdog->NoteDumped();
  EXPECT_TRUE(ranks_[0].watchdog->AllDumped(2));
}

TEST(Watchdog, WithoutABoardOnlyTheOwnPhaseCounts) {
  g_now = NanosOf(1);
  Heartbeat heartbeat(&TestClock);
  const FlightRecorder recorder(&TestClock);
  Watchdog watchdog({0, 1, "node"}, heartbeat, recorder, nullptr, 0);
  heartbeat.Enter(Phase::kExit);
  EXPECT_FALSE(watchdog.Tick(g_now).has_value());
  for (int i = 0; i < 200; ++i) {
    g_now += NanosOf(0.25);
    EXPECT_FALSE(watchdog.Tick(g_now).has_value());
  }
  for (int i = 0; i < 60; ++i) watchdog.Tick(g_now += NanosOf(0.25));
  EXPECT_TRUE(watchdog.Tick(g_now).has_value());
  EXPECT_TRUE(watchdog.RaiseAlarm());
  EXPECT_TRUE(watchdog.AllDumped(-1));
}

}  // namespace
}  // namespace graft::comm
