#include "trainer/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"

namespace graft::trainer {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

TEST(DeviceMemory, FitsWhereHeldAndFreeAreEnough) {
  EXPECT_TRUE(CheckFits(20 * kGiB, {.held = 16 * kGiB, .free = 4 * kGiB, .total = 24 * kGiB}).ok());
  EXPECT_TRUE(CheckFits(3 * kGiB, {.held = 16 * kGiB, .free = 0, .total = 24 * kGiB}).ok());
}

TEST(DeviceMemory, TooLittleNamesPredictedAndFree) {
  const absl::Status status =
      CheckFits(21 * kGiB, {.held = 16 * kGiB, .free = 4 * kGiB, .total = 24 * kGiB});
  EXPECT_EQ(KindOf(status), ErrorKind::kRecipe);
  EXPECT_THAT(std::string(status.message()),
              ::testing::AllOf(::testing::HasSubstr("predicted 21.0 GiB"),
                               ::testing::HasSubstr("holds 16.0 GiB and 4.0 GiB of 24.0 GiB"),
                               ::testing::HasSubstr("model.recompute")));
}

TEST(AssignGpus, EveryRankOfANodeGetsItsOwn) {
  using Ranks = std::vector<VisibleGpusOfRank>;
  using ::testing::ElementsAre;
  // All see all: in the order of ranks, node by node.
  EXPECT_THAT(
      AssignGpus(Ranks{{"a", {"0", "1"}}, {"b", {"2", "3"}}, {"a", {"0", "1"}}, {"b", {"2", "3"}}}),
      ElementsAre(0, 0, 1, 1));
  // Each sees the one that the batch system gave it.
  EXPECT_THAT(AssignGpus(Ranks{{"a", {"0"}}, {"a", {"1"}}}), ElementsAre(0, 0));
  // Lists in another order.
  EXPECT_THAT(AssignGpus(Ranks{{"a", {"0", "1"}}, {"a", {"1", "0"}}}), ElementsAre(0, 0));
  EXPECT_THAT(AssignGpus(Ranks{{"a", {"0", "1"}}, {"a", {"0", "1"}}, {"a", {"0", "1"}}}),
              ElementsAre(0, 1, -1));
  EXPECT_THAT(AssignGpus(Ranks{{"a", {}}, {"a", {"0"}}}), ElementsAre(-1, 0));
  // Who sees the fewest has no other choice.
  EXPECT_THAT(AssignGpus(Ranks{{"a", {"0", "1"}}, {"a", {"0"}}}), ElementsAre(1, 0));
  // Two ranks on one card that count as two nodes (NCCL_HOSTID).
  EXPECT_THAT(AssignGpus(Ranks{{"a/1", {"0"}}, {"a/2", {"0"}}}), ElementsAre(0, 0));
}

}  // namespace
}  // namespace graft::trainer
