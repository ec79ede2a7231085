#include "trainer/data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/dataset_folder.h"
#include "tests/testing/status_matchers.h"

namespace graft::trainer {
namespace {

using ::graft::testing::DatasetFolder;
using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::TempFolder;
using ::graft::testing::TinyDataset;
using ::graft::testing::TinyTaskDataset;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(DatasetTest, SamplesOfAllShardsInOrder) {
  const TempFolder folder;
  TinyDataset().Write(folder);
  const auto data = Dataset::Open(folder.path());
  ASSERT_THAT(data, IsOk());
  ASSERT_EQ((*data)->size(), 5);
  const Sample first = (*data)->at(0);
  EXPECT_THAT(first.input_ids, ElementsAre(10, 11, 12, 13));
  EXPECT_THAT(first.loss_mask, ElementsAre(0, 0, 1, 1));
  EXPECT_EQ(first.prompt_length, 2);
  EXPECT_EQ(first.sample_id, 100);
  EXPECT_THAT(first.target_ids, IsEmpty());
  const Sample fourth = (*data)->at(3);
  EXPECT_THAT(fourth.input_ids, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(fourth.loss_mask, ElementsAre(0, 0, 0, 1, 1));
  EXPECT_EQ(fourth.prompt_length, 3);
  EXPECT_EQ(fourth.sample_id, 103);
  EXPECT_THAT((*data)->at(4).input_ids, ElementsAre(6));
  EXPECT_EQ((*data)->longest(), 5);
  EXPECT_EQ((*data)->max_token_id(), 31);
  EXPECT_EQ((*data)->ignored_first_targets(), 0);
  EXPECT_EQ((*data)->info().num_trained_tokens, 6);
  std::vector<int64_t> lengths, trained;
  for (int64_t i = 0; i < 5; ++i) {
    lengths.push_back((*data)->length(i));
    trained.push_back((*data)->trained_tokens(i));
  }
  EXPECT_THAT(lengths, ElementsAre(4, 3, 2, 5, 1));
  EXPECT_THAT(trained, ElementsAre(2, 1, 1, 2, 0));
}

TEST(DatasetTest, AFirstTokenIsNeverATarget) {
  const TempFolder folder;
  DatasetFolder tiny = TinyDataset();
  tiny.shards[0].uint8["loss_mask"][4] = 1;
  for (const int64_t counted : {6, 7}) {  // a writer may count it or not
    tiny.header["num_trained_tokens"] = counted;
    tiny.Write(folder);
    const auto data = Dataset::Open(folder.path());
    ASSERT_THAT(data, IsOk());
    EXPECT_EQ((*data)->ignored_first_targets(), 1);
    EXPECT_EQ((*data)->trained_tokens(1), 1);
  }
}

TEST(DatasetTest, Classification) {
  const TempFolder folder;
  DatasetFolder tiny = TinyTaskDataset("classification", 2);
  tiny.header["labels"] = {"no", "yes"};
  tiny.shards[0].int64["labels"] = {1, 0};
  tiny.Write(folder);
  const auto data = Dataset::Open(folder.path());
  ASSERT_THAT(data, IsOk());
  EXPECT_EQ((*data)->at(0).label, 1);
  EXPECT_EQ((*data)->trained_tokens(0), 1);
  EXPECT_THAT((*data)->at(0).loss_mask, IsEmpty());
}

TEST(DatasetTest, Regression) {
  const TempFolder folder;
  DatasetFolder tiny = TinyTaskDataset("regression", 2);
  tiny.shards[0].float32["labels"] = {0.5f, -2.0f};
  tiny.Write(folder);
  const auto data = Dataset::Open(folder.path());
  ASSERT_THAT(data, IsOk());
  EXPECT_EQ((*data)->at(1).value, -2.0f);
}

TEST(DatasetTest, Seq2SeqWithEncoderIds) {
  const TempFolder folder;
  DatasetFolder tiny = TinyTaskDataset("seq2seq", 3);
  tiny.shards[0].int32["target_ids"] = {8, 9, 1};
  tiny.shards[0].int64["target_offsets"] = {0, 2, 3};
  tiny.shards[0].int32["encoder_ids"] = {900, 901, 902};
  tiny.shards[0].int64["encoder_offsets"] = {0, 1, 3};
  tiny.Write(folder);
  const auto data = Dataset::Open(folder.path());
  ASSERT_THAT(data, IsOk());
  EXPECT_THAT((*data)->at(0).target_ids, ElementsAre(8, 9));
  EXPECT_THAT((*data)->at(1).encoder_ids, ElementsAre(901, 902));
  EXPECT_EQ((*data)->trained_tokens(0), 2);
  EXPECT_EQ((*data)->total_tokens(0), 4);
}

TEST(DatasetTest, FingerprintFollowsHeaderAndShards) {
  const TempFolder folder;
  DatasetFolder tiny = TinyDataset();
  tiny.Write(folder);
  const std::string before = (*Dataset::Open(folder.path()))->fingerprint();
  EXPECT_EQ(before.size(), 64u);
  EXPECT_EQ((*Dataset::Open(folder.path()))->fingerprint(), before);
  tiny.shards[0].int32["input_ids"][1] = 12;
  tiny.Write(folder);
  EXPECT_NE((*Dataset::Open(folder.path()))->fingerprint(), before);
}

TEST(DatasetTest, MustFitTheModel) {
  const TempFolder folder;
  TinyDataset().Write(folder);
  const auto data = Dataset::Open(folder.path());
  ASSERT_THAT(data, IsOk());
  EXPECT_THAT((*data)->CheckFitsModel(32, 5), IsOk());
  EXPECT_THAT((*data)->CheckFitsModel(31, 5), FailsWith(ErrorKind::kInput, "token id is 31"));
  EXPECT_THAT((*data)->CheckFitsModel(32, 4), FailsWith(ErrorKind::kInput, "5 tokens"));
}

TEST(DatasetTest, HashesCanBeLeftToTheInspection) {
  const TempFolder folder;
  DatasetFolder tiny = TinyDataset();
  tiny.Write(folder);
  tiny.header["shards"][0]["sha256"] = std::string(64, '0');
  folder.Write("dataset.json", tiny.header.dump());
  EXPECT_THAT(Dataset::Open(folder.path()), FailsWith(ErrorKind::kInput, "sha256"));
  Dataset::Options options;
  options.verify_hashes = false;
  EXPECT_THAT(Dataset::Open(folder.path(), options), IsOk());
}

}  // namespace
}  // namespace graft::trainer
