#include "models/sequence_fork.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft::models {
namespace {

using testing::ElementsAre;
using testing::Pair;

TEST(ForkSequencesTest, ChildrenGoOnFromTheirParentsAtOnce) {
  std::map<int64_t, std::string> states = {{0, "a"}, {1, "b"}, {2, "c"}, {7, "x"}};
  int copies = 0;
  // 0 and 1 change places, 2 goes on from 1 as well; what 2 held is gone.
  ForkSequences(states, {{1, 0}, {0, 1}, {1, 2}}, [&](const std::string& state) {
    ++copies;
    return state;
  });
  EXPECT_THAT(states, ElementsAre(Pair(0, "b"), Pair(1, "a"), Pair(2, "b"), Pair(7, "x")));
  EXPECT_EQ(copies, 1);
}

TEST(ForkSequencesTest, AParentThatIsNoChildIsGone) {
  std::map<int64_t, std::string> states = {{4, "prompt"}};
  ForkSequences(states, {{4, 5}, {4, 6}}, [](const std::string& state) { return state + "'"; });
  EXPECT_THAT(states, ElementsAre(Pair(5, "prompt'"), Pair(6, "prompt")));
}

TEST(ForkSequencesTest, NoStateStaysNoState) {
  std::map<int64_t, std::string> states = {{1, "old"}};
  ForkSequences(states, {{0, 0}, {0, 2}}, [](const std::string& state) { return state; });
  EXPECT_THAT(states, ElementsAre(Pair(1, "old")));
}

}  // namespace
}  // namespace graft::models
