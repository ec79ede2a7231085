#include "trainer/data/batch_plan.h"

#include <algorithm>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"
#include "tests/testing/status_matchers.h"

namespace graft::trainer {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

BatchPlanOptions Options(int64_t num_samples, int64_t global_batch) {
  BatchPlanOptions options;
  options.num_samples = num_samples;
  options.global_batch = global_batch;
  return options;
}

BatchPlan Make(const BatchPlanOptions& options) {
  auto plan = BatchPlan::Create(options);
  EXPECT_THAT(plan, IsOk());
  return *std::move(plan);
}

TEST(BatchPlanTest, DataSetOrderWrapsInsideABatch) {
  BatchPlan plan = Make(Options(5, 2));
  EXPECT_EQ(plan.num_steps(), 3);
  EXPECT_THAT(plan.GlobalBatch(0), ElementsAre(0, 1));
  EXPECT_THAT(plan.GlobalBatch(2), ElementsAre(4, 0));
  EXPECT_THAT(plan.GlobalBatch(3), ElementsAre(1, 2));
  BatchPlan large = Make(Options(3, 8));
  EXPECT_THAT(large.GlobalBatch(0), ElementsAre(0, 1, 2, 0, 1, 2, 0, 1));
}

TEST(BatchPlanTest, StepsAndEpochs) {
  BatchPlanOptions options = Options(10, 4);
  options.epochs = 3;
  EXPECT_EQ(Make(options).num_steps(), 8);  // ceil(30 / 4)
  options.max_samples = 6;
  EXPECT_EQ(Make(options).num_steps(), 5);  // ceil(18 / 4)
  options.steps = 2;
  EXPECT_EQ(Make(options).num_steps(), 2);
}

TEST(BatchPlanTest, MaxSamplesTakesTheFirst) {
  BatchPlanOptions options = Options(10, 4);
  options.max_samples = 3;
  EXPECT_THAT(Make(options).GlobalBatch(0), ElementsAre(0, 1, 2, 0));
  options.shuffle = true;
  BatchPlan shuffled = Make(options);
  for (int64_t k = 0; k < 5; ++k) {
    for (const int64_t sample : shuffled.GlobalBatch(k)) EXPECT_LT(sample, 3);
  }
}

TEST(BatchPlanTest, SharesAreContiguousAndTheLastMicroBatchSmaller) {
  BatchPlanOptions options = Options(100, 10);
  options.data_ranks = 2;
  options.micro_batch = 2;
  BatchPlan plan = Make(options);
  EXPECT_EQ(plan.micro_batches_per_step(), 3);
  EXPECT_THAT(plan.MicroBatches(1, 0),
              ElementsAre(ElementsAre(10, 11), ElementsAre(12, 13), ElementsAre(14)));
  EXPECT_THAT(plan.MicroBatches(1, 1),
              ElementsAre(ElementsAre(15, 16), ElementsAre(17, 18), ElementsAre(19)));
}

TEST(BatchPlanTest, EveryLayoutSeesTheSameGlobalBatch) {
  BatchPlanOptions options = Options(23, 12);
  options.shuffle = true;
  options.seed = 5;
  options.row_length = 16;
  for (int64_t i = 0; i < 23; ++i) options.lengths.push_back(1 + i % 11);
  BatchPlan reference = Make(options);
  for (const int64_t data_ranks : {1, 2, 3, 4}) {
    for (const int64_t micro_batch : {1, 2, 5}) {
      options.data_ranks = data_ranks;
      options.micro_batch = micro_batch;
      BatchPlan plan = Make(options);
      for (int64_t k = 0; k < 6; ++k) {
        std::vector<int64_t> all;
        for (int64_t rank = 0; rank < data_ranks; ++rank) {
          for (const auto& samples : plan.MicroBatches(k, rank)) {
            all.insert(all.end(), samples.begin(), samples.end());
          }
        }
        EXPECT_EQ(all, reference.GlobalBatch(k)) << data_ranks << " " << micro_batch << " " << k;
      }
    }
  }
}

TEST(BatchPlanTest, ShuffleIsAPermutationOfEachEpoch) {
  BatchPlanOptions options = Options(50, 50);
  options.shuffle = true;
  options.seed = 3;
  BatchPlan plan = Make(options);
  std::set<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    std::vector<int64_t> order = plan.GlobalBatch(epoch);
    orders.insert(order);
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < 50; ++i) EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
  }
  EXPECT_EQ(orders.size(), 4u);  // each epoch has its own
  options.seed = 4;
  EXPECT_EQ(orders.count(Make(options).GlobalBatch(0)), 0u);
}

TEST(BatchPlanTest, ShuffleMixesWell) {
  BatchPlanOptions options = Options(1000, 1000);
  options.shuffle = true;
  BatchPlan plan = Make(options);
  // Mean distance between a sample and its place: a third of the length for a uniform order.
  double distance = 0;
  const std::vector<int64_t> order = plan.GlobalBatch(0);
  for (std::size_t i = 0; i < order.size(); ++i) {
    distance += std::abs(static_cast<double>(order[i]) - static_cast<double>(i)) / 1000.0;
  }
  EXPECT_NEAR(distance, 333.0, 40.0);
}

TEST(BatchPlanTest, AResumeInTheMiddleSeesTheSameBatches) {
  BatchPlanOptions options = Options(17, 6);
  options.shuffle = true;
  options.row_length = 12;
  for (int64_t i = 0; i < 17; ++i) options.lengths.push_back(1 + i % 7);
  BatchPlan from_the_start = Make(options);
  std::vector<std::vector<int64_t>> batches;
  for (int64_t k = 0; k < 20; ++k) batches.push_back(from_the_start.GlobalBatch(k));
  BatchPlan resumed = Make(options);
  for (int64_t k = 19; k >= 0; --k) {
    EXPECT_EQ(resumed.GlobalBatch(k), batches[static_cast<std::size_t>(k)]) << k;
  }
}

TEST(BatchPlanTest, PackedRowsStandForSamples) {
  BatchPlanOptions options = Options(6, 2);
  options.row_length = 10;
  options.lengths = {3, 5, 1, 7, 4, 2};  // rows {0, 3}, {1, 2, 4}, {5}: see packing_test.cc
  BatchPlan plan = Make(options);
  EXPECT_EQ(plan.rows_in_epoch(0), 3);
  EXPECT_EQ(plan.num_steps(), 2);
  EXPECT_THAT(plan.GlobalBatch(0), ElementsAre(0, 3, 1, 2, 4));
  EXPECT_THAT(plan.GlobalBatch(1), ElementsAre(5, 0, 3));
  EXPECT_THAT(plan.MicroBatches(0, 0), ElementsAre(ElementsAre(0, 3), ElementsAre(1, 2, 4)));
}

TEST(BatchPlanTest, EveryPackedEpochHoldsEverySampleOnce) {
  BatchPlanOptions options = Options(40, 1);
  options.shuffle = true;
  options.row_length = 20;
  for (int64_t i = 0; i < 40; ++i) options.lengths.push_back(1 + (7 * i) % 20);
  BatchPlan plan = Make(options);
  int64_t row = 0;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::multiset<int64_t> seen;
    for (const int64_t end = row + plan.rows_in_epoch(epoch); row < end; ++row) {
      for (const int64_t sample : plan.GlobalBatch(row)) seen.insert(sample);
    }
    EXPECT_EQ(seen.size(), 40u);
    EXPECT_EQ(std::set<int64_t>(seen.begin(), seen.end()).size(), 40u);
  }
}

TEST(BatchPlanTest, WhatDoesNotFitNamesTheKey) {
  BatchPlanOptions options = Options(10, 5);
  options.data_ranks = 2;
  EXPECT_THAT(BatchPlan::Create(options), FailsWith(ErrorKind::kRecipe, "optim.global_batch"));
  options = Options(2, 1);
  options.row_length = 4;
  options.lengths = {4, 5};
  EXPECT_THAT(BatchPlan::Create(options),
              FailsWith(ErrorKind::kRecipe, "data.row_length: found 4, sample 1 has 5 tokens"));
  options = Options(0, 1);
  EXPECT_THAT(BatchPlan::Create(options), FailsWith(ErrorKind::kRecipe, "data.train"));
  options = Options(std::numeric_limits<int64_t>::max(), 1);
  options.epochs = 2;
  EXPECT_THAT(BatchPlan::Create(options), FailsWith(ErrorKind::kRecipe, "optim.epochs"));
}

TEST(EvaluationMicroBatchesTest, EverySampleOnceWithoutWrapping) {
  EXPECT_THAT(EvaluationMicroBatches(5, 2, 1, 0),
              ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3), ElementsAre(4)));
  EXPECT_THAT(EvaluationMicroBatches(5, 2, 2, 0), ElementsAre(ElementsAre(0, 1), ElementsAre(2)));
  EXPECT_THAT(EvaluationMicroBatches(5, 2, 2, 1), ElementsAre(ElementsAre(3, 4)));
  EXPECT_THAT(EvaluationMicroBatches(1, 4, 2, 1), ElementsAre());
}

TEST(BatchPlanTest, PositionAfterStepsCountsEpochsAndRows) {
  BatchPlanOptions options;
  options.num_samples = 10;
  options.global_batch = 4;
  options.steps = 100;
  BatchPlan plan = ValueOrThrow(BatchPlan::Create(options));
  EXPECT_EQ(plan.After(0).cursor, 0);
  EXPECT_EQ(plan.After(2).cursor, 8);
  EXPECT_EQ(plan.After(3).epoch, 1);
  EXPECT_EQ(plan.After(3).cursor, 2);
  EXPECT_EQ(plan.After(5).epoch, 2);  // the end of an epoch is the begin of the next
  EXPECT_EQ(plan.After(5).cursor, 0);
}

TEST(BatchPlanTest, ThePackingPlanOfAnEpochIsKnownByItsHash) {
  BatchPlanOptions options;
  options.num_samples = 12;
  options.global_batch = 2;
  options.steps = 100;
  options.shuffle = true;
  options.seed = 3;
  options.row_length = 10;
  options.lengths = {3, 7, 5, 2, 9, 4, 6, 8, 1, 5, 3, 2};
  BatchPlan plan = ValueOrThrow(BatchPlan::Create(options));
  BatchPlan same = ValueOrThrow(BatchPlan::Create(options));
  EXPECT_EQ(plan.EpochSha256(0), same.EpochSha256(0));
  EXPECT_NE(plan.EpochSha256(0), plan.EpochSha256(1));
  options.seed = 4;
  EXPECT_NE(ValueOrThrow(BatchPlan::Create(options)).EpochSha256(0), plan.EpochSha256(0));
  const int64_t rows = plan.rows_in_epoch(0);
  EXPECT_EQ(plan.After(rows / 2).epoch, rows % 2 == 0 ? 1 : 0);
  EXPECT_EQ(plan.After((rows + 1) / 2).epoch, 1);
}

}  // namespace
}  // namespace graft::trainer
