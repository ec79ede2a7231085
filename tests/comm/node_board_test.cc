#include "comm/node_board.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "tests/testing/status_matchers.h"

namespace graft::comm {
namespace {

TEST(NodeBoard, StartsEmptyAndOneRankSpeaks) {
  const std::shared_ptr<NodeBoard> board = NodeBoard::InMemory(3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(board->slot(i).state.load(), BoardSlot::kEmpty);
  EXPECT_EQ(board->alarm(), -1);
  EXPECT_TRUE(board->RaiseAlarm(0));
  EXPECT_FALSE(board->RaiseAlarm(1));
  EXPECT_EQ(board->alarm(), 0);
}

TEST(NodeBoard, ProcessesShareIt) {
  const std::string name = "graft-test-" + std::to_string(::getpid());
  auto board = NodeBoard::Open(name, 2);
  ASSERT_TRUE(board.ok()) << board.status();
  const pid_t child = ::fork();
  if (child == 0) {
    auto mine = NodeBoard::Open(name, 2);
    if (!mine.ok()) ::_exit(1);
    (*mine)->slot(1).stamp_ns.store(42);
    ::_exit((*mine)->RaiseAlarm(1) ? 0 : 2);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ((*board)->slot(1).stamp_ns.load(), 42);
  EXPECT_EQ((*board)->alarm(), 1);
  NodeBoard::Remove(name);
  auto fresh = NodeBoard::Open(name, 2);
  ASSERT_TRUE(fresh.ok());
  EXPECT_EQ((*fresh)->slot(1).stamp_ns.load(), 0);
  NodeBoard::Remove(name);
}

TEST(NodeBoard, AnImpossibleNameIsAnIoError) {
  EXPECT_THAT(NodeBoard::Open("no/such/place", 1),
              testing::FailsWith(ErrorKind::kIo, "shared memory no/such/place: shm_open"));
}

}  // namespace
}  // namespace graft::comm
