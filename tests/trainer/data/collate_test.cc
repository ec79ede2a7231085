#include "trainer/data/collate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/dataset_folder.h"
#include "tests/testing/status_matchers.h"

namespace graft::trainer {
namespace {

using ::graft::testing::IsOk;
using ::graft::testing::TempFolder;
using ::graft::testing::TinyDataset;
using ::graft::testing::TinyTaskDataset;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(CollateTest, SegmentsPositionsAndShiftedTargets) {
  const TempFolder folder;
  TinyDataset().Write(folder);
  const auto data = Dataset::Open(folder.path());
  ASSERT_THAT(data, IsOk());
  const models::MicroBatch batch = Collate(**data, {1, 3, 4}, 7, 2);
  EXPECT_EQ(batch.step, 7);
  EXPECT_EQ(batch.index, 2);
  EXPECT_EQ(batch.num_rows(), 9);
  EXPECT_THAT(batch.tokens, ElementsAre(20, 21, 22, 1, 2, 3, 4, 5, 6));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 0, 1, 2, 3, 4, 0));
  ASSERT_EQ(batch.segments.size(), 3u);
  EXPECT_EQ(batch.segments[1].sample_id, 103);
  EXPECT_EQ(batch.segments[1].begin, 3);
  EXPECT_EQ(batch.segments[1].length, 5);
  EXPECT_EQ(batch.segments[1].prompt_length, 3);
  // Sample 1 trains its token 1, sample 3 its tokens 3 and 4: each is predicted one row before.
  EXPECT_THAT(batch.target_rows, ElementsAre(0, 5, 6));
  EXPECT_THAT(batch.target_ids, ElementsAre(21, 4, 5));
  EXPECT_EQ(CountTrainedTokens(**data, {1, 3, 4}), 3);
  EXPECT_EQ(CountTokens(**data, {1, 3, 4}), 9);
}

// methods.md 7: everything shifts by the rows of a soft prompt, the counts of tokens do not.
TEST(CollateTest, VirtualRowsStandInFrontOfEachText) {
  const TempFolder folder;
  TinyDataset().Write(folder);
  const auto data = Dataset::Open(folder.path());
  ASSERT_THAT(data, IsOk());
  const models::MicroBatch batch = Collate(**data, {1, 3}, 7, 2, /*virtual_rows=*/2);
  EXPECT_EQ(batch.num_rows(), 12);
  EXPECT_THAT(batch.tokens, ElementsAre(0, 0, 20, 21, 22, 0, 0, 1, 2, 3, 4, 5));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6));
  EXPECT_EQ(batch.segments[1].begin, 5);
  EXPECT_EQ(batch.segments[1].length, 7);
  EXPECT_EQ(batch.segments[1].virtual_rows, 2);
  EXPECT_EQ(batch.segments[1].prompt_begin(), 7);
  EXPECT_EQ(batch.segments[1].prompt_length, 3);
  EXPECT_THAT(batch.target_rows, ElementsAre(2, 9, 10));
  EXPECT_THAT(batch.target_ids, ElementsAre(21, 4, 5));
  EXPECT_EQ(CountTokens(**data, {1, 3}), 8);
}

TEST(CollateTest, AFirstTokenIsNeverATarget) {
  const TempFolder folder;
  auto tiny = TinyDataset();
  tiny.shards[0].uint8["loss_mask"] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
  tiny.header["num_trained_tokens"] = 8;
  tiny.Write(folder);
  const auto data = Dataset::Open(folder.path());
  ASSERT_THAT(data, IsOk());
  const models::MicroBatch batch = Collate(**data, {0, 2}, 1, 0);
  EXPECT_THAT(batch.target_rows, ElementsAre(0, 1, 2, 4));
  EXPECT_THAT(batch.target_ids, ElementsAre(11, 12, 13, 31));
  EXPECT_EQ(CountTrainedTokens(**data, {0, 2}), 4);
}

TEST(CollateTest, OtherKindsHaveNoTokenTargets) {
  const TempFolder folder;
  auto tiny = TinyTaskDataset("regression", 2);
  tiny.shards[0].float32["labels"] = {0.5f, 1.0f};
  tiny.Write(folder);
  const auto data = Dataset::Open(folder.path());
  ASSERT_THAT(data, IsOk());
  const models::MicroBatch batch = Collate(**data, {0, 1}, 1, 0);
  EXPECT_THAT(batch.target_rows, IsEmpty());
  EXPECT_EQ(CountTrainedTokens(**data, {0, 1}), 2);
}

TEST(CollateTest, Seq2SeqHasTheDecodersRowsAndTheEncodersBesideThem) {
  const TempFolder folder;
  auto tiny = TinyTaskDataset("seq2seq", 5);
  tiny.shards[0].int32["target_ids"] = {21, 22, 9, 23, 9};
  tiny.shards[0].int64["target_offsets"] = {0, 3, 5};
  tiny.Write(folder);
  const auto data = Dataset::Open(folder.path());
  ASSERT_THAT(data, IsOk());
  const models::MicroBatch batch = Collate(**data, {1, 0}, 4, 2, /*virtual_rows=*/1,
                                           /*decoder_start=*/30);
  ASSERT_NE(batch.source, nullptr);
  const models::MicroBatch& source = *batch.source;
  EXPECT_EQ(source.step, 4);
  EXPECT_THAT(source.tokens, ElementsAre(0, 3, 4, 5, 0, 1, 2));
  EXPECT_THAT(source.positions, ElementsAre(0, 1, 2, 3, 0, 1, 2));
  EXPECT_THAT(source.target_rows, IsEmpty());
  EXPECT_EQ(source.segments[1].prompt_begin(), 5);
  EXPECT_EQ(source.segments[1].prompt_length, 2);
  EXPECT_THAT(batch.tokens, ElementsAre(30, 23, 30, 21, 22));
  EXPECT_THAT(batch.target_rows, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(batch.target_ids, ElementsAre(23, 9, 21, 22, 9));
  EXPECT_EQ(batch.segments[1].sample_id, 7);
  EXPECT_EQ(batch.segments[1].virtual_rows, 0);
  EXPECT_EQ(batch.num_rows(), 5);
  EXPECT_EQ(batch.boundary_rows(), 12);
  EXPECT_EQ(CountTrainedTokens(**data, {0, 1}), 5);
  EXPECT_EQ(CountTokens(**data, {0, 1}), 10);
}

}  // namespace
}  // namespace graft::trainer
