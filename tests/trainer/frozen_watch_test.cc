#include "trainer/frozen_watch.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace graft::trainer {
namespace {

using testing::FailsWith;
using testing::IsOk;

constexpr double kRound = 1800;

void FlipOneBit(const torch::Tensor& tensor, int64_t at) {
  static_cast<uint8_t*>(tensor.data_ptr())[at] ^= 4;
}

TEST(FrozenWatchTest, AFlippedBitIsNamedWithinOneRound) {
  const torch::Tensor a = at::arange(100, at::kFloat), b = at::arange(300, at::kFloat);
  FrozenWatch watch({{"a", a}, {"b", b}});
  EXPECT_EQ(watch.bytes(), 1600);
  EXPECT_THAT(watch.CheckSome(kRound), IsOk());
  FlipOneBit(b, 777);
  EXPECT_THAT(watch.CheckAll(), FailsWith(ErrorKind::kBug, "frozen weight `b` has changed"));
  // Small steps: each tensor has its turn within one round, and the pace is kept.
  absl::Status status;
  int steps = 0;
  for (; steps < 100 && status.ok(); ++steps) status = watch.CheckSome(kRound / 100);
  EXPECT_THAT(status, FailsWith(ErrorKind::kBug, "`b`"));
  EXPECT_GT(steps, 75);
  FlipOneBit(b, 777);
  EXPECT_THAT(watch.CheckAll(), IsOk());
}

TEST(FrozenWatchTest, ViewsAreWatchedAndWhatIsGoneIsNot) {
  const torch::Tensor whole = at::arange(64, at::kFloat);
  torch::Tensor gone = at::arange(10, at::kFloat);
  FrozenWatch watch({{"half", whole.narrow(0, 32, 32)}, {"gone", gone}});
  gone.reset();
  FlipOneBit(whole, 10);  // before the view
  EXPECT_THAT(watch.CheckAll(), IsOk());
  FlipOneBit(whole, 4 * 32);
  EXPECT_THAT(watch.CheckAll(), FailsWith(ErrorKind::kBug, "`half`"));
}

TEST(FrozenWatchTest, NothingToWatchIsFine) {
  FrozenWatch watch({});
  EXPECT_THAT(watch.CheckSome(kRound), IsOk());
  EXPECT_THAT(watch.CheckAll(), IsOk());
}

}  // namespace
}  // namespace graft::trainer
