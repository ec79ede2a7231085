#include "comm/agree.h"

#include <gtest/gtest.h>

#include "base/status.h"
#include "tests/testing/run_ranks.h"

namespace graft::comm {
namespace {

using testing::RunRanks;

TEST(Agree, AllOkIsOk) {
  RunRanks(3,
           [](Communicator& world) { EXPECT_TRUE(AgreeOnStatus(world, absl::OkStatus()).ok()); });
}

TEST(Agree, LowestFailingRankWinsOnAllRanks) {
  RunRanks(4, [](Communicator& world) {
    absl::Status mine;
    if (world.rank() == 2) mine = IoError("disk full");
    if (world.rank() == 3) mine = InputError("no file");
    const absl::Status agreed = AgreeOnStatus(world, mine);
    EXPECT_EQ(KindOf(agreed), ErrorKind::kIo);
    EXPECT_EQ(agreed.message(), "rank 2: disk full");
  });
}

TEST(Agree, OneRankKeepsItsMessage) {
  RunRanks(1, [](Communicator& world) {
    EXPECT_EQ(AgreeOnStatus(world, InputError("no file")).message(), "no file");
  });
}

TEST(Agree, ErrorWithoutTextIsStillAnError) {
  RunRanks(2, [](Communicator& world) {
    const absl::Status agreed =
        AgreeOnStatus(world, world.rank() == 0 ? absl::OkStatus() : UsageError(""));
    EXPECT_EQ(KindOf(agreed), ErrorKind::kUsage);
  });
}

TEST(Agree, StringsOfDifferentLengthsInRankOrder) {
  RunRanks(4, [](Communicator& world) {
    const std::vector<std::string> all =
        AllGatherStrings(world, std::string(world.rank() * 1000, 'a' + world.rank()));
    ASSERT_EQ(all.size(), 4u);
    for (int r = 0; r < 4; ++r) EXPECT_EQ(all[r], std::string(r * 1000, 'a' + r));
    for (const std::string& text : AllGatherStrings(world, "")) EXPECT_TRUE(text.empty());
  });
}

TEST(Agree, BroadcastStringWithNulBytes) {
  RunRanks(3, [](Communicator& world) {
    const std::string value("a\0b", 3);
    EXPECT_EQ(BroadcastString(world, world.rank() == 2 ? value : "other", 2), value);
    EXPECT_EQ(BroadcastString(world, "", 0), "");
  });
}

TEST(Agree, FirstDifferingRank) {
  RunRanks(4, [](Communicator& world) {
    EXPECT_EQ(FirstDifferingRank(world, "plan"), -1);
    EXPECT_EQ(FirstDifferingRank(world, world.rank() >= 2 ? "other" : "plan"), 2);
    EXPECT_EQ(FirstDifferingRank(world, world.rank() == 0 ? "other" : "plan"), 1);
  });
}

}  // namespace
}  // namespace graft::comm
