#include "trainer/coordinator/transport.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace graft::trainer {
namespace {

using ::graft::testing::FailsWith;

Message FullMessage() {
  Message message;
  message.kind = Message::Kind::kReport;
  message.worker = 3;
  message.item = 1234567;
  message.epoch = int64_t{7} << 32;
  message.start = 2;
  message.progress = 99;
  message.capacity = 5;
  message.stop = true;
  message.numeric = true;
  message.seconds = 0.1;
  message.held = {{5, HeldItem::State::kBegun}, {-6, HeldItem::State::kComputed}};
  message.bytes = std::string("a\0b", 3);
  return message;
}

TEST(Message, ComesBackFromItsBytes) {
  const auto back = DecodeMessage(EncodeMessage(FullMessage()));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, FullMessage());
}

TEST(Message, ShortOrForeignBytesAreRefused) {
  Message message = FullMessage();
  message.bytes.clear();
  const std::string bytes = EncodeMessage(message);
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THAT(DecodeMessage(bytes.substr(0, size)), FailsWith(ErrorKind::kBug, "a message of"))
        << size;
  }
  std::string foreign = bytes;
  foreign[0] = 77;
  EXPECT_THAT(DecodeMessage(foreign), FailsWith(ErrorKind::kBug, "kind 77"));
}

TEST(LocalTransports, CarryInOrderBothWays) {
  const auto [coordinator, worker] = MakeLocalTransports();
  EXPECT_FALSE(worker->Receive().has_value());
  Message message = FullMessage();
  coordinator->Send(message);
  message.item = 8;
  coordinator->Send(message);
  EXPECT_FALSE(coordinator->Receive().has_value());
  EXPECT_EQ(worker->Receive(), FullMessage());
  EXPECT_EQ(worker->Receive()->item, 8);
  worker->Send(message);
  EXPECT_EQ(coordinator->Receive(), message);
}

}  // namespace
}  // namespace graft::trainer
