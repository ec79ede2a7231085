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

}  // namespace
}  // namespace graft::trainer
