#include "trainer/scoring/score_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace graft::trainer {
namespace {

using models::Role;
using ::testing::DoubleEq;
using ::testing::ElementsAre;

constexpr Role kRoles[] = {Role::kAttnQ,   Role::kAttnK, Role::kAttnV,  Role::kAttnO,
                           Role::kFfnGate, Role::kFfnUp, Role::kFfnDown};

// All seven linears of `layers` layers; `samples` of 10 tokens each, 2 of them trained.
ScoreTask TaskOf(const std::string& method, int layers, int samples) {
  ScoreTask task;
  task.method = method;
  task.num_layers = layers;
  for (int layer = 0; layer < layers; ++layer) {
    for (const Role role : kRoles) task.modules.push_back({{layer, role}, "", 4, 4});
  }
  task.tokens.assign(static_cast<size_t>(samples), 10);
  task.trained_tokens.assign(static_cast<size_t>(samples), 2);
  task.grid = {"float32", 1, 32, 4, 4};
  return task;
}

int64_t Forwards(const ScoreTask& task) {
  int64_t sum = 0;
  for (const WorkItem& item : ScoreItems(task)) sum += LayerForwards(task, item);
  return sum;
}

// methods.md 16.2: 135.5 F of one kind at 32 layers of 7 modules in blocks of 4; naive 225.
TEST(ScorePlanTest, PrefixesAreShared) {
  const ScoreTask task = TaskOf("loo", 32, 64);
  EXPECT_EQ(Forwards(task), 64 * 32 * 135.5);
  EXPECT_EQ(NaiveLayerForwards(task), 64 * 32 * 225);
}

TEST(ScorePlanTest, AllModulesOfSmolLm2CostAtMost62Percent) {
  const ScoreTask task = TaskOf("ab", 30, 512);
  const double share =
      static_cast<double>(Forwards(task)) / static_cast<double>(NaiveLayerForwards(task));
  EXPECT_LE(share, 0.62);
  EXPECT_NEAR(share, 0.605, 0.0005);
}

TEST(ScorePlanTest, ItemsFollowFromTheRecipe) {
  const std::vector<WorkItem> items = ScoreItems(TaskOf("ab", 6, 40));
  ASSERT_EQ(items.size(), 8u);  // 2 kinds x 2 shards x 2 blocks
  EXPECT_EQ(ItemName(items[0]), "loo of layers 0-3, samples 0-31");
  EXPECT_EQ(ItemName(items[3]), "loo of layers 4-5, samples 32-39");
  EXPECT_EQ(ItemName(items[7]), "keep_one of layers 4-5, samples 32-39");
  EXPECT_GT(items[0].cost, items[1].cost) << "low layers take longest";
  EXPECT_GT(items[0].cost, items[2].cost) << "so do many samples";
  EXPECT_EQ(ScoreItems(TaskOf("taylor_sq", 6, 40)).size(), 2u);
  EXPECT_EQ(ScoreItems(TaskOf("keep_one", 6, 40)).size(), 2u + 4u) << "base_loss is measured too";
  EXPECT_TRUE(ScoreItems(TaskOf("magnitude", 6, 40)).empty());
}

TEST(ScorePlanTest, BlocksWithoutModulesAreLeftOut) {
  ScoreTask task = TaskOf("loo", 9, 4);
  task.modules = {{{1, Role::kAttnQ}, "", 4, 4}, {{8, Role::kAttnV}, "", 4, 4}};
  const std::vector<WorkItem> items = ScoreItems(task);
  ASSERT_EQ(items.size(), 2u);
  EXPECT_EQ(items[1].first_layer, 8);
  // One copy up to the layer, then variant and clean copy.
  EXPECT_EQ(LayerForwards(task, items[0]), 4 * (1 + 2 * 8));
  EXPECT_EQ(LayerForwards(task, items[1]), 4 * (8 + 2 * 1));
}

// Numbers that say where they belong: 100 x layer + 10 x column + sample.
std::string ResultOf(const ScoreTask& task, const WorkItem& item) {
  std::vector<double> values;
  for (int layer = item.first_layer; layer < item.first_layer + item.num_layers; ++layer) {
    const size_t columns = ModulesOf(task.modules, layer, layer + 1).size() + 1;
    for (size_t column = 0; column < columns; ++column) {
      for (int64_t n = 0; n < item.num_samples; ++n) {
        values.push_back(100.0 * layer + 10.0 * static_cast<double>(column * column) +
                         static_cast<double>(item.first_sample + n) *
                             static_cast<double>(column + 1));
      }
    }
  }
  return PackResult(values);
}

TEST(ScorePlanTest, ResultsJoinIntoPairedDifferences) {
  ScoreTask task = TaskOf("ab", 2, 3);
  task.grid.shard_samples = 2;
  task.modules = {
      {{0, Role::kAttnQ}, "", 4, 4}, {{1, Role::kAttnQ}, "", 4, 4}, {{1, Role::kAttnV}, "", 4, 4}};
  const std::vector<WorkItem> items = ScoreItems(task);
  std::vector<std::string> results;
  for (const WorkItem& item : items) results.push_back(ResultOf(task, item));
  const auto measured = JoinResults(task, items, results);
  ASSERT_TRUE(measured.ok()) << measured.status();
  // Column 1 minus column 0: 10 + n; column 2 minus column 0: 40 + 2 n.
  EXPECT_THAT(measured->ablation.loo[0], ElementsAre(10, 11, 12));
  EXPECT_THAT(measured->ablation.loo[2], ElementsAre(40, 42, 44));
  EXPECT_THAT(measured->ablation.keep_one[1], ElementsAre(-10, -11, -12));
  EXPECT_THAT(measured->ablation.all, ElementsAre(0, 1, 2)) << "of the lowest layer";
  EXPECT_EQ(measured->base_loss, 3.0 / 6);
  const auto scores = ScoresOf(task, *measured, /*seed=*/0);
  EXPECT_DOUBLE_EQ(scores[2].Term("loo"), 126.0 / 6);

  results[2].pop_back();
  EXPECT_THAT(JoinResults(task, items, results), testing::FailsWith(ErrorKind::kBug, "must be"));
}

TEST(ScorePlanTest, DoublingEveryLossKeepsTheOrder) {
  ScoreTask task = TaskOf("ab", 3, 5);
  const std::vector<WorkItem> items = ScoreItems(task);
  std::vector<std::string> once, twice;
  double x = 0.5;
  for (const WorkItem& item : items) {
    std::vector<double> values = UnpackResult(ResultOf(task, item));
    for (double& value : values) value = x = 3.9 * x * (1 - x);  // anything without order
    once.push_back(PackResult(values));
    for (double& value : values) value *= 2;
    twice.push_back(PackResult(values));
  }
  const auto scores = ScoresOf(task, *JoinResults(task, items, once), 0);
  const auto doubled = ScoresOf(task, *JoinResults(task, items, twice), 0);
  for (size_t i = 0; i < scores.size(); ++i) {
    EXPECT_EQ(doubled[i].score, 2 * scores[i].score);
    for (size_t j = 0; j < i; ++j)
      EXPECT_EQ(scores[i].score < scores[j].score, doubled[i].score < doubled[j].score);
  }
}

TEST(ScorePlanTest, PlacesOfNumbersHaveNames) {
  const ScoreTask task = TaskOf("loo", 4, 10);
  const WorkItem item = ScoreItems(task)[0];
  EXPECT_EQ(PlaceOf(task, item, 0).what, "layer 0, all modules on");
  const ResultPlace place = PlaceOf(task, item, 8 * 10 + 2 * 10 + 7);
  EXPECT_EQ(place.what, "layer 1 attn.k");
  EXPECT_EQ(place.first_sample, 7);
  const ScoreTask taylor = TaskOf("taylor", 1, 10);
  const WorkItem shard = ScoreItems(taylor)[0];
  EXPECT_EQ(PlaceOf(taylor, shard, 6 * 10 + 3).what, "layer 0 ffn.down");
  const ResultPlace loss = PlaceOf(taylor, shard, 7 * 10 + 2);
  EXPECT_EQ(loss.what, "the loss");
  EXPECT_EQ(loss.first_sample, 8);
  EXPECT_EQ(loss.num_samples, 2);
}

}  // namespace
}  // namespace graft::trainer
