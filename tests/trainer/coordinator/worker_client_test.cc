#include "trainer/coordinator/worker_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "base/status.h"

namespace graft::trainer {
namespace {

using Kind = Message::Kind;
using State = HeldItem::State;

class WorkerClientTest : public ::testing::Test {
 protected:
  WorkerClientTest() {
    auto [coordinator, worker] = MakeLocalTransports();
    coordinator_ = std::move(coordinator);
    transport_ = std::move(worker);
    Make({});
  }
  void Make(const WorkerOptions& options) {
    client_ = std::make_unique<WorkerClient>(
        3, 1, options, [this] { return now_; }, transport_.get());
  }
  void Tell(Kind kind, int item = -1, int64_t epoch = 0, bool stop = false) {
    Message message;
    message.kind = kind;
    message.worker = 3;
    message.item = item;
    message.epoch = epoch;
    message.stop = stop;
    coordinator_->Send(message);
  }
  // What the client says when it is polled now.
  std::vector<Message> Said() {
    client_->Poll();
    std::vector<Message> messages;
    while (auto message = coordinator_->Receive()) messages.push_back(*message);
    return messages;
  }
  std::vector<Kind> SaidKinds() {
    std::vector<Kind> kinds;
    for (const Message& message : Said()) kinds.push_back(message.kind);
    return kinds;
  }

  double now_ = 100;
  std::unique_ptr<Transport> coordinator_, transport_;
  std::unique_ptr<WorkerClient> client_;
};

TEST_F(WorkerClientTest, AsksAtOnceAndThenEverySecond) {
  const std::vector<Message> first = Said();
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].kind, Kind::kReport);
  EXPECT_EQ(first[0].worker, 3);
  EXPECT_EQ(first[0].start, 1);
  EXPECT_EQ(first[0].capacity, 3);
  EXPECT_TRUE(Said().empty());
  now_ += 1;
  EXPECT_EQ(Said().size(), 1u);
}

TEST_F(WorkerClientTest, BeginsInTheOrderOfGrantsOneAtATime) {
  Tell(Kind::kGrant, 8, 50);
  Tell(Kind::kGrant, 4, 51);
  client_->Poll();
  const auto work = client_->Begin();
  ASSERT_TRUE(work.has_value());
  EXPECT_EQ(work->item, 8);
  EXPECT_FALSE(client_->Begin().has_value());
  const std::vector<Message> said = Said();
  EXPECT_THAT(said.back().held,
              ::testing::ElementsAre(HeldItem{50, State::kBegun}, HeldItem{51, State::kWaiting}));
  client_->Deliver(50, std::string("r"));
  EXPECT_EQ(client_->Begin()->item, 4);
}

TEST_F(WorkerClientTest, APipelineBeginsAsManyAsItHasStages) {
  Make({.in_flight = 2});
  for (int i = 0; i < 3; ++i) Tell(Kind::kGrant, i, 50 + i);
  client_->Poll();
  EXPECT_EQ(client_->Begin()->item, 0);
  EXPECT_EQ(client_->Begin()->item, 1);
  EXPECT_FALSE(client_->Begin().has_value());
}

TEST_F(WorkerClientTest, ADoubledGrantIsNotDoneTwice) {
  Tell(Kind::kGrant, 8, 50);
  Tell(Kind::kGrant, 8, 50);
  client_->Poll();
  ASSERT_TRUE(client_->Begin().has_value());
  client_->Deliver(50, std::string("r"));
  Tell(Kind::kAck, -1, 50);
  Tell(Kind::kGrant, 8, 50);
  client_->Poll();
  EXPECT_FALSE(client_->Begin().has_value());
}

TEST_F(WorkerClientTest, RenewsEveryTenSecondsOnlyWhenItGetsOn) {
  Tell(Kind::kGrant, 8, 50);
  Tell(Kind::kGrant, 9, 51);
  client_->Poll();
  client_->Begin();
  Said();
  now_ += 10;
  EXPECT_TRUE(Said().empty());
  client_->NoteProgress();
  EXPECT_EQ(Said().at(0).progress, 1);
  now_ += 9;
  client_->NoteProgress();
  EXPECT_TRUE(Said().empty());
  now_ += 1;
  EXPECT_EQ(Said().at(0).progress, 2);
}

TEST_F(WorkerClientTest, DeliversUntilAcknowledged) {
  Tell(Kind::kGrant, 8, 50);
  client_->Poll();
  client_->Begin();
  now_ += 7;
  client_->Deliver(50, std::string("bytes"));
  std::vector<Message> said = Said();
  ASSERT_EQ(said.at(1).kind, Kind::kResult);  // behind the first report
  EXPECT_EQ(said[1].bytes, "bytes");
  EXPECT_EQ(said[1].item, 8);
  EXPECT_EQ(said[1].seconds, 7);
  EXPECT_THAT(said[2].held, ::testing::ElementsAre(HeldItem{50, State::kComputed}));
  now_ += 20;
  EXPECT_THAT(SaidKinds(), ::testing::ElementsAre(Kind::kResult, Kind::kReport));
  Tell(Kind::kAck, -1, 50);
  now_ += 20;
  EXPECT_THAT(SaidKinds(), ::testing::ElementsAre(Kind::kReport));
}

TEST_F(WorkerClientTest, SaysWhyAnItemHasNoResult) {
  Tell(Kind::kGrant, 8, 50);
  client_->Poll();
  client_->Begin();
  client_->Deliver(50, NumericError("sample 3: nan"));
  const std::vector<Message> said = Said();
  ASSERT_EQ(said.at(1).kind, Kind::kFailure);
  EXPECT_TRUE(said[1].numeric);
  EXPECT_EQ(said[1].bytes, "sample 3: nan");
}

TEST_F(WorkerClientTest, DropsWhatIsNotBegunOnly) {
  Tell(Kind::kGrant, 8, 50);
  Tell(Kind::kGrant, 9, 51);
  client_->Poll();
  client_->Begin();
  Tell(Kind::kDrop, -1, 50);
  Tell(Kind::kDrop, -1, 51);
  Said();
  client_->Deliver(50, std::string("r"));
  EXPECT_FALSE(client_->Begin().has_value());
}

TEST_F(WorkerClientTest, EndsWhatIsBegunBeforeItSaysGoodbye) {
  Tell(Kind::kGrant, 8, 50);
  Tell(Kind::kGrant, 9, 51);
  client_->Poll();
  client_->Begin();
  Tell(Kind::kFinish);
  Said();
  client_->Deliver(50, std::string("r"));
  EXPECT_FALSE(client_->Begin().has_value());
  Said();
  Tell(Kind::kAck, -1, 50);
  EXPECT_THAT(SaidKinds(), ::testing::ElementsAre(Kind::kBye));
  EXPECT_FALSE(client_->finished());
  Tell(Kind::kBye);
  EXPECT_TRUE(Said().empty());
  EXPECT_TRUE(client_->finished());
}

TEST_F(WorkerClientTest, DoesNotWaitForAnAcknowledgementThatCannotCome) {
  Tell(Kind::kGrant, 8, 50);
  client_->Poll();
  client_->Begin();
  client_->Deliver(50, std::string("r"));
  Said();
  Tell(Kind::kFinish, -1, 0, /*stop=*/true);
  EXPECT_THAT(SaidKinds(), ::testing::ElementsAre(Kind::kBye));
}

TEST_F(WorkerClientTest, PassesAStopRequestOn) {
  Said();
  client_->RequestStop();
  now_ += 1;
  EXPECT_TRUE(Said().at(0).stop);
}

}  // namespace
}  // namespace graft::trainer
