// Values against the definitions of accuracy, F1, MCC and Pearson, computed in Python apart from
// this code.
#include "trainer/task_metrics.h"

#include <map>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace graft::trainer {
namespace {

std::map<std::string, double> Classified(int64_t classes, const std::vector<int64_t>& labels,
                                         const std::vector<int64_t>& predictions) {
  TaskMetrics metrics("classification", classes);
  // Two micro-batches.
  for (size_t begin : {size_t{0}, labels.size() / 2}) {
    const size_t end = begin == 0 ? labels.size() / 2 : labels.size();
    models::MicroBatch batch;
    std::vector<int64_t> said;
    for (size_t i = begin; i < end; ++i) {
      batch.labels.push_back(labels[i]);
      said.push_back(predictions[i]);
    }
    metrics.Add(at::one_hot(at::tensor(said, at::kLong), classes).to(at::kFloat), batch);
  }
  const auto values = metrics.Values(0.5);
  return {values.begin(), values.end()};
}

TEST(TaskMetricsTest, TwoClasses) {
  // F1 of class 1.
  auto values = Classified(2, {1, 0, 1, 1, 0, 1, 0, 0, 1, 1}, {1, 0, 0, 1, 1, 1, 0, 0, 1, 0});
  EXPECT_NEAR(values["accuracy"], 0.7, 1e-12);
  EXPECT_NEAR(values["f1"], 0.7272727272727273, 1e-12);
  EXPECT_NEAR(values["mcc"], 0.408248290463863, 1e-12);
}

TEST(TaskMetricsTest, ThreeClasses) {
  // F1 is the mean over classes.
  auto values = Classified(3, {0, 1, 2, 2, 1, 0, 2, 1}, {0, 2, 2, 2, 1, 0, 1, 1});
  EXPECT_NEAR(values["accuracy"], 0.75, 1e-12);
  EXPECT_NEAR(values["f1"], (1.0 + 2.0 / 3 + 2.0 / 3) / 3, 1e-12);
  EXPECT_NEAR(values["mcc"], 0.6190476190476191, 1e-12);
}

TEST(TaskMetricsTest, OneClassOnlyIsZeroNotNaN) {
  auto values = Classified(2, {1, 1, 1}, {1, 1, 1});
  EXPECT_EQ(values["accuracy"], 1);
  EXPECT_EQ(values["f1"], 1);
  EXPECT_EQ(values["mcc"], 0);
}

TEST(TaskMetricsTest, Pearson) {
  TaskMetrics metrics("regression", 1);
  models::MicroBatch batch;
  batch.values = {1.0f, 2.0f, 3.5f, 0.5f};
  metrics.Add(at::tensor({1.5f, 1.0f, 3.0f, 1.0f}).view({4, 1}), batch);
  const auto values = metrics.Values(0.25);
  EXPECT_EQ(values[0].first, "mse");
  EXPECT_EQ(values[0].second, 0.25);
  EXPECT_EQ(values[1].first, "pearson");
  EXPECT_NEAR(values[1].second, 0.8319479070496522, 1e-9);
}

TEST(TaskMetricsTest, AnswersAreExactWhenEveryTrainedTokenOfTheSampleIsRight) {
  // Three samples of 4, 3 and 5 rows with 2, 0 and 3 trained tokens, then one of 2 rows with 1.
  TaskMetrics metrics("causal_lm", 0);
  models::MicroBatch first, second;
  first.segments = {
      {.begin = 0, .length = 4}, {.begin = 4, .length = 3}, {.begin = 7, .length = 5}};
  first.target_rows = {1, 2, 7, 9, 10};
  second.segments = {{.begin = 0, .length = 2}};
  second.target_rows = {0};
  metrics.Add(at::tensor({1, 1, 1, 0, 1}).to(at::kBool), first);
  metrics.Add(at::tensor({1}).to(at::kBool), second);
  const auto values = metrics.Values(0.0);
  ASSERT_EQ(values.size(), 3u);
  EXPECT_EQ(values[0].first, "perplexity");
  EXPECT_EQ(values[1].first, "token_accuracy");
  EXPECT_NEAR(values[1].second, 5.0 / 6, 1e-12);
  EXPECT_EQ(values[2].first, "exact_match");
  EXPECT_NEAR(values[2].second, 2.0 / 3, 1e-12);
}

TEST(TaskMetricsTest, NoTrainedTokenIsZeroNotNaN) {
  TaskMetrics metrics("causal_lm", 0);
  EXPECT_EQ(metrics.Values(0.0)[1].second, 0);
  EXPECT_EQ(metrics.Values(0.0)[2].second, 0);
}

}  // namespace
}  // namespace graft::trainer
