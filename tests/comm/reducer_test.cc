#include "comm/reducer.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/status.h"
#include "tests/comm/comm_contract.h"
#include "tests/testing/run_ranks.h"

namespace graft::comm {
namespace {

using testing::ErrorOf;
using testing::RunRanks;

TEST(ReduceControl, SumsAndLargestByField) {
  RunRanks(3, [](Communicator& world) {
    const int r = world.rank();
    ControlVector mine;
    mine.loss_sum = r == 2 ? 12.5 : 0;
    mine.trained_tokens = 10 + r;
    mine.samples = 2;
    mine.tokens = 100 * r;
    mine.gradient_square_sum = 0.25;
    mine.non_finite = r == 1 ? 1 : 0;
    mine.stop_requests = r == 0 ? 1 : 0;
    mine.saves_done = 1;
    mine.saves_failed = r == 1 ? 1 : 0;
    mine.compute_seconds = 0.5;
    mine.error_code = r == 1 ? 74 : 0;
    mine.peak_memory_bytes = r == 0 ? 1e9 : 2e8;
    mine.communication_seconds = r;
    std::vector<ControlVector> by_rank;
    const ControlVector total = ReduceControl(world, mine, &by_rank);
    ASSERT_EQ(by_rank.size(), 3u);
    for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(by_rank[rank].communication_seconds, rank);
    EXPECT_EQ(total.loss_sum, 12.5);
    EXPECT_EQ(total.trained_tokens, 33);
    EXPECT_EQ(total.samples, 6);
    EXPECT_EQ(total.tokens, 300);
    EXPECT_EQ(total.gradient_square_sum, 0.75);
    EXPECT_EQ(total.non_finite, 1);
    EXPECT_EQ(total.stop_requests, 1);
    EXPECT_EQ(total.saves_done, 3);
    EXPECT_EQ(total.saves_failed, 1);
    EXPECT_EQ(total.compute_seconds, 1.5);
    EXPECT_EQ(total.error_code, 74);
    EXPECT_EQ(total.peak_memory_bytes, 1e9);
    EXPECT_EQ(total.communication_seconds, 2);
  });
}

// 1e16 + 1 - 1e16 + 1 in float64 is 1 from left to right only.
TEST(ReduceControl, SumsInRankOrder) {
  RunRanks(4, [](Communicator& world) {
    constexpr double kLosses[] = {1e16, 1, -1e16, 1};
    ControlVector mine;
    mine.loss_sum = kLosses[world.rank()];
    EXPECT_EQ(ReduceControl(world, mine).loss_sum, 1.0);
  });
}

}  // namespace
}  // namespace graft::comm
