#include "comm/clock_offset.h"

#include <gtest/gtest.h>

#include "tests/testing/run_ranks.h"

namespace graft::comm {
namespace {

using ::graft::testing::RunRanks;

// Threads of one process share the clock: no offset, and the other side learns nothing.
TEST(ClockOffsetTest, RanksOnOneClockHaveNone) {
  RunRanks(3, [](Communicator& all) {
    if (all.rank() == 0) {
      for (int rank = 1; rank < 3; ++rank) {
        const ClockOffset none = MeasureClockOffset(all, rank, /*asks=*/false);
        EXPECT_EQ(none.nanos, 0);
        EXPECT_EQ(none.error, 0);
      }
      return;
    }
    const ClockOffset offset = MeasureClockOffset(all, 0, /*asks=*/true);
    EXPECT_EQ(offset.nanos, 0);
    EXPECT_GT(offset.error, 0);
  });
}

}  // namespace
}  // namespace graft::comm
