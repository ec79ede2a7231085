// The coordinator's answers, message by message. Whole runs: simulation_test.cc.
#include "trainer/coordinator/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <vector>

#include "tests/testing/status_matchers.h"
#include "tests/trainer/coordinator/simulated_run.h"
#include "trainer/coordinator/simulation.h"

namespace graft::trainer {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::kRunKey;
using Kind = Message::Kind;
using State = HeldItem::State;

class FakeTransport : public Transport {
 public:
  void Send(const Message& message) override { sent.push_back(message); }
  std::optional<Message> Receive() override {
    if (arrived.empty()) return std::nullopt;
    const Message message = arrived.front();
    arrived.pop_front();
    return message;
  }
  std::vector<Message> sent;
  std::deque<Message> arrived;
};

class FailingLog : public MemoryLog {
 public:
  absl::Status Sync() override { return failure.ok() ? MemoryLog::Sync() : failure; }
  absl::Status failure;
};

class CoordinatorTest : public ::testing::Test {
 protected:
  void Make(int num_items, int64_t items_cost = 10) {
    for (int i = 0; i < num_items; ++i) {
      WorkItem item{"loo", 32 * i, 32, 0, 4, 4, static_cast<double>(items_cost)};
      items_.push_back(item);
    }
    Restart();
  }
  void Restart() {
    coordinator_ = std::make_unique<Coordinator>(
        items_, kRunKey, CoordinatorOptions(), [this] { return now_; }, &transport_, &log_);
  }
  // The answers to what has arrived.
  std::vector<Message> Poll() {
    transport_.sent.clear();
    coordinator_->Poll();
    return transport_.sent;
  }
  std::vector<Message> Report(int worker, std::vector<HeldItem> held = {}, int64_t progress = 0,
                              int64_t start = 0, bool stop = false) {
    Message message;
    message.worker = worker;
    message.held = std::move(held);
    message.progress = progress;
    message.start = start;
    message.capacity = 3;
    message.stop = stop;
    transport_.arrived.push_back(message);
    return Poll();
  }
  Message Result(int worker, int item, int64_t epoch, const std::string& bytes) {
    Message message;
    message.kind = Kind::kResult;
    message.worker = worker;
    message.item = item;
    message.epoch = epoch;
    message.seconds = 10;
    message.bytes = bytes;
    return message;
  }
  std::vector<Message> Deliver(const Message& message) {
    transport_.arrived.push_back(message);
    return Poll();
  }
  static std::vector<Kind> Kinds(const std::vector<Message>& messages) {
    std::vector<Kind> kinds;
    for (const Message& message : messages) kinds.push_back(message.kind);
    return kinds;
  }

  double now_ = 0;
  std::vector<WorkItem> items_;
  FakeTransport transport_;
  FailingLog log_;
  std::unique_ptr<Coordinator> coordinator_;
};

TEST_F(CoordinatorTest, GrantsUpToTheCapacityAndThenSaysItIsThere) {
  Make(10);
  const std::vector<Message> grants = Report(0);
  ASSERT_THAT(Kinds(grants), ::testing::ElementsAre(Kind::kGrant, Kind::kGrant, Kind::kGrant));
  EXPECT_LT(grants[0].epoch, grants[1].epoch);
  std::vector<HeldItem> held;
  for (const Message& grant : grants) held.push_back({grant.epoch, State::kWaiting});
  EXPECT_THAT(Kinds(Report(0, held)), ::testing::ElementsAre(Kind::kAlive));
}

TEST_F(CoordinatorTest, AResultIsAcknowledgedAfterItsSyncOnly) {
  Make(10);
  const int64_t epoch = Report(0)[0].epoch;
  EXPECT_THAT(Deliver(Result(0, 0, epoch, "r")), ::testing::IsEmpty());
  now_ += 0.05;
  EXPECT_THAT(Poll(), ::testing::IsEmpty());
  now_ += 0.06;
  const std::vector<Message> acks = Poll();
  ASSERT_THAT(Kinds(acks), ::testing::ElementsAre(Kind::kAck));
  EXPECT_EQ(acks[0].epoch, epoch);
  EXPECT_EQ(coordinator_->results()[0], "r");
}

TEST_F(CoordinatorTest, ALostGrantIsSentAgainWithItsEpoch) {
  Make(1);
  const Message grant = Report(0)[0];
  now_ += 1;
  EXPECT_THAT(Kinds(Report(0)), ::testing::ElementsAre(Kind::kAlive));
  now_ += 2;
  const std::vector<Message> again = Report(0);
  ASSERT_EQ(Kinds(again)[0], Kind::kGrant);
  EXPECT_EQ(again[0], grant);
}

TEST_F(CoordinatorTest, AWorkerThatCameBackGetsItsItemsAtOnce) {
  Make(1);
  const Message grant = Report(0)[0];
  const std::vector<Message> again = Report(0, {}, 0, 1);
  ASSERT_EQ(Kinds(again)[0], Kind::kGrant);
  EXPECT_EQ(again[0], grant);
  // What it said before is old.
  EXPECT_TRUE(Report(0, {}, 50, 0).empty());
}

TEST_F(CoordinatorTest, ALeaseEndsWhenItsWorkerMissesThreeRenewals) {
  for (const int interval : {10, 100}) {  // between two signs of work
    items_.clear();
    Make(1);
    const int64_t epoch = Report(0)[0].epoch;
    const double begin = now_;
    for (int sign = 1; sign <= 600 / interval; ++sign) {
      now_ = begin + sign * interval;
      Report(0, {{epoch, State::kBegun}}, sign);
    }
    now_ = begin + 600 + 3 * interval;
    EXPECT_TRUE(Poll().empty());
    Report(0, {{epoch, State::kBegun}}, 600 / interval);  // it says the same again
    now_ += 1;
    const std::vector<Message> said = Poll();
    ASSERT_THAT(Kinds(said), ::testing::ElementsAre(Kind::kDrop));
    EXPECT_EQ(said[0].epoch, epoch);
    EXPECT_EQ(coordinator_->table().state(0), ItemState::kTodo);
    EXPECT_EQ(coordinator_->table().failures(0).count, 1);
  }
}

TEST_F(CoordinatorTest, AnItemThatOnlyWaitedIsNotToBlame) {
  Make(1);
  Report(0);
  now_ += 601;
  Poll();
  EXPECT_EQ(coordinator_->table().state(0), ItemState::kTodo);
  EXPECT_EQ(coordinator_->table().failures(0).count, 0);
}

TEST_F(CoordinatorTest, ALeaseOfAnotherStartIsDroppedAndItsResultIsTaken) {
  Make(1);
  EXPECT_EQ(Kinds(Report(0, {{4, State::kWaiting}}))[0], Kind::kDrop);
  Deliver(Result(5, 0, 4, "r"));
  EXPECT_EQ(coordinator_->results()[0], "r");
}

TEST_F(CoordinatorTest, TheSameResultTwiceIsWelcomeAnotherOneIsABug) {
  Make(2);
  Deliver(Result(0, 0, 1, "r"));
  Deliver(Result(1, 0, 2, "r"));
  EXPECT_EQ(coordinator_->progress().repeated, 1);
  EXPECT_FALSE(coordinator_->finished());
  Deliver(Result(1, 0, 2, "s"));
  EXPECT_TRUE(coordinator_->finished());
  EXPECT_THAT(coordinator_->status(),
              FailsWith(ErrorKind::kBug, "loo of layers 0-3, samples 0-31: worker 0 found"));
  EXPECT_THAT(coordinator_->status(), FailsWith(ErrorKind::kBug, "worker 1 found"));
  EXPECT_TRUE(Report(1)[0].stop);
}

TEST_F(CoordinatorTest, AnIdleWorkerTakesOverWhatWaitsBehindAnotherItem) {
  Make(2);
  const std::vector<Message> grants = Report(0);
  Report(0, {{grants[0].epoch, State::kBegun}, {grants[1].epoch, State::kWaiting}}, 1);
  const std::vector<Message> said = Report(1);
  ASSERT_THAT(Kinds(said), ::testing::ElementsAre(Kind::kDrop, Kind::kGrant));
  EXPECT_EQ(said[0].worker, 0);
  EXPECT_EQ(said[0].epoch, grants[1].epoch);
  EXPECT_EQ(said[1].worker, 1);
  EXPECT_EQ(said[1].item, grants[1].item);
  EXPECT_EQ(coordinator_->table().CountLeases(grants[1].item), 1);
}

TEST_F(CoordinatorTest, AnIdleWorkerRepeatsAnItemThatIsLate) {
  Make(3);
  Deliver(Result(0, 0, 1, "r"));  // 10 s an item
  const Message grant = Report(0)[0];
  Report(0, {{grant.epoch, State::kBegun}}, 1);
  EXPECT_THAT(Kinds(Report(1)), ::testing::Contains(Kind::kGrant));  // the other one
  now_ += 12;
  EXPECT_THAT(Kinds(Report(2)), ::testing::Contains(Kind::kAlive));
  now_ += 4;
  const std::vector<Message> said = Report(2);
  ASSERT_EQ(Kinds(said)[0], Kind::kGrant);
  EXPECT_EQ(said[0].item, grant.item);
  EXPECT_EQ(coordinator_->table().CountLeases(grant.item), 2);
}

TEST_F(CoordinatorTest, AFasterWorkerGetsMoreNearTheEnd) {
  Make(6, 10);
  Message fast = Result(0, 0, 1, "r"), slow = Result(1, 1, 2, "r");
  fast.seconds = 1;
  slow.seconds = 100;
  Deliver(fast);
  Deliver(slow);
  EXPECT_EQ(Report(0).size(), 3u);
  // The four left last 3 s on both together: the slow one takes no stock.
  EXPECT_EQ(Kinds(Report(1)), std::vector<Kind>{Kind::kGrant});
}

TEST_F(CoordinatorTest, AFailureGoesElsewhereThenCounts) {
  Make(1);
  Message failure;
  failure.kind = Kind::kFailure;
  failure.numeric = true;
  failure.bytes = "sample 3: nan";
  Report(1);
  for (const int worker : {0, 1, 0}) {
    const std::vector<Message> said = Report(worker);
    const auto grant = std::find_if(said.begin(), said.end(),
                                    [](const Message& m) { return m.kind == Kind::kGrant; });
    const int64_t epoch =
        grant != said.end() ? grant->epoch : coordinator_->table().Leases().at(0)->epoch;
    failure.worker = coordinator_->table().FindLease(epoch)->worker;
    failure.epoch = epoch;
    EXPECT_EQ(Kinds(Deliver(failure))[0], Kind::kAck);
    Deliver(failure);  // came twice: counts once
  }
  EXPECT_TRUE(coordinator_->finished());
  EXPECT_THAT(coordinator_->status(), FailsWith(ErrorKind::kNumeric, "no result after 3 tries"));
}

TEST_F(CoordinatorTest, AStopRequestOfAnyWorkerEndsTheRunAndKeepsWhatIsDone) {
  Make(10);
  Report(0);
  EXPECT_THAT(Kinds(Report(1, {}, 0, 0, true)), ::testing::Contains(Kind::kFinish));
  EXPECT_THAT(Kinds(Report(0)), ::testing::Contains(Kind::kFinish));
  Deliver(Result(0, 0, 1, "r"));
  EXPECT_TRUE(coordinator_->finished());
  EXPECT_THAT(coordinator_->status(), FailsWith(ErrorKind::kStopped, "after 1 of 10 items"));
  Restart();
  EXPECT_EQ(coordinator_->progress().from_journal, 1);
}

TEST_F(CoordinatorTest, ALogThatCannotBeWrittenEndsTheRun) {
  Make(10);
  log_.failure = IoError("journal.bin: writing it: No space left on device");
  Deliver(Result(0, 0, 1, "r"));
  now_ += 1;
  EXPECT_THAT(Kinds(Poll()), ::testing::ElementsAre(Kind::kFinish));
  EXPECT_TRUE(coordinator_->finished());
  EXPECT_THAT(coordinator_->status(), FailsWith(ErrorKind::kIo, "No space left"));
}

TEST_F(CoordinatorTest, WhatTheLogHoldsIsDone) {
  Make(2);
  Deliver(Result(0, 1, 1, "r"));
  Restart();
  EXPECT_EQ(coordinator_->table().state(1), ItemState::kDone);
  EXPECT_EQ(Report(0).size(), 1u);
  Deliver(Result(0, 0, 1, "q"));
  Restart();
  Poll();
  EXPECT_TRUE(coordinator_->finished());
  EXPECT_THAT(coordinator_->status(), IsOk());
  EXPECT_THAT(coordinator_->results(), ::testing::ElementsAre("q", "r"));
}

TEST_F(CoordinatorTest, ProgressTellsWhatIsLeft) {
  Make(10);
  EXPECT_EQ(coordinator_->progress().eta_seconds, -1);
  Report(0);
  Report(1);
  Deliver(Result(0, 0, 1, "r"));  // cost 10 in 10 s
  const ItemProgress progress = coordinator_->progress();
  EXPECT_EQ(progress.items, 10);
  EXPECT_EQ(progress.done, 1);
  EXPECT_EQ(progress.replicas_alive, 2);
  EXPECT_DOUBLE_EQ(progress.eta_seconds, 45);
  now_ += 10;
  Report(0, {{1, State::kBegun}}, 1);
  now_ += 61;
  EXPECT_EQ(coordinator_->progress().replicas_alive, 1);  // the other one has shown no work yet
  now_ += 600;
  EXPECT_EQ(coordinator_->progress().replicas_alive, 0);
}

}  // namespace
}  // namespace graft::trainer
