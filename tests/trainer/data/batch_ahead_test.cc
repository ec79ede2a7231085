#include "trainer/data/batch_ahead.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "base/status.h"

namespace graft::trainer {
namespace {

std::vector<models::MicroBatch> BatchesOf(int64_t step) {
  std::vector<models::MicroBatch> batches(2);
  for (int64_t i = 0; i < 2; ++i) {
    batches[static_cast<size_t>(i)].step = step;
    batches[static_cast<size_t>(i)].index = i;
    batches[static_cast<size_t>(i)].tokens = {step, i, 10 * step + i};
  }
  return batches;
}

TEST(BatchAhead, GivesEachStepItsOwnBatchesInOrder) {
  std::atomic<int> on_main_thread = 0;
  const std::thread::id main_thread = std::this_thread::get_id();
  const auto of = [&](int64_t step) -> BatchAhead::Collation {
    return [&, step] {
      on_main_thread += std::this_thread::get_id() == main_thread ? 1 : 0;
      return BatchesOf(step);
    };
  };
  BatchAhead ahead;  // goes first: it reads what stands above until then
  for (int64_t step = 3; step < 40; ++step) {
    const std::vector<models::MicroBatch> got = ahead.Take(step, of(step));
    ahead.Start(step + 1, of(step + 1));
    const std::vector<models::MicroBatch> want = BatchesOf(step);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(got[i].step, step);
      EXPECT_EQ(got[i].index, want[i].index);
      EXPECT_EQ(got[i].tokens, want[i].tokens);
    }
  }
  EXPECT_EQ(on_main_thread, 1);  // the first step
}

TEST(BatchAhead, AnotherStepThanWasBegunIsCollatedNow) {
  BatchAhead ahead;
  ahead.Start(5, [] { return BatchesOf(5); });
  EXPECT_EQ(ahead.Take(7, [] { return BatchesOf(7); })[0].step, 7);
  EXPECT_EQ(ahead.Take(8, [] { return BatchesOf(8); })[0].step, 8);
}

TEST(BatchAhead, AnErrorComesWithItsStep) {
  BatchAhead ahead;
  ahead.Start(1, []() -> std::vector<models::MicroBatch> {
    throw StatusError(InputError("sample 3 is damaged"));
  });
  try {
    ahead.Take(1, [] { return BatchesOf(1); });
    FAIL() << "no error";
  } catch (const StatusError& error) {
    EXPECT_EQ(KindOf(error.status()), ErrorKind::kInput);
  }
}

}  // namespace
}  // namespace graft::trainer
