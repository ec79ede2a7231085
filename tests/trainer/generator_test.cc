#include "trainer/generator.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/agree.h"
#include "models/backbone.h"
#include "tests/testing/status_matchers.h"
#include "tests/trainer/training_run.h"
#include "trainer/data/collate.h"

namespace graft::trainer {
namespace {

using testing::IsOk;
using testing::TrainingRun;

TEST(ChooseTokenTest, GreedyTakesTheLargest) {
  EXPECT_EQ(ChooseToken(at::tensor({0.5f, 3.0f, 3.0f, -1.0f}), {}, 0, 0), 1);
}

TEST(ChooseTokenTest, SamplingFollowsTheDistributionAndCutsTheTail) {
  const at::Tensor logits = at::log(at::tensor({0.1f, 0.6f, 0.3f}));
  std::vector<int> counts(3), cut(3);
  for (int64_t sample = 0; sample < 4000; ++sample) {
    ++counts[static_cast<size_t>(ChooseToken(logits, {.temperature = 1.0, .seed = 5}, sample, 3))];
    ++cut[static_cast<size_t>(
        ChooseToken(logits, {.temperature = 1.0, .top_p = 0.7, .seed = 5}, sample, 3))];
  }
  EXPECT_NEAR(counts[0] / 4000.0, 0.1, 0.02);
  EXPECT_NEAR(counts[1] / 4000.0, 0.6, 0.03);
  EXPECT_EQ(cut[0], 0);  // 0.6 + 0.3 reaches 0.7
  EXPECT_NEAR(cut[1] / 4000.0, 2.0 / 3.0, 0.03);
}

TEST(ChooseTokenTest, LowTemperatureIsGreedy) {
  const at::Tensor logits = at::tensor({1.0f, 2.0f, 1.5f});
  for (int64_t position = 0; position < 50; ++position) {
    EXPECT_EQ(ChooseToken(logits, {.temperature = 0.01, .seed = 1}, 9, position), 1);
  }
}

TEST(TopIndicesTest, TiesFallAsLibTorchsTopkPutsThem) {
  std::vector<float> values;
  for (uint32_t i = 0, state = 3; i < 400; ++i) {
    state = state * 1664525u + 1013904223u;
    values.push_back(static_cast<float>(state >> 29));  // 8 values
    for (int64_t count = 1; count <= std::min<int64_t>(i + 1, 12); ++count) {
      const at::Tensor want = std::get<1>(at::topk(at::tensor(values), count));
      const std::vector<int64_t> got = TopIndices(values, count);
      ASSERT_TRUE(at::equal(at::tensor(got), want)) << count << " of " << values.size();
    }
  }
}

std::vector<Continuation> GenerateOn(const TrainingRun& run, Recipe recipe,
                                     const GenerateOptions& options) {
  std::vector<std::vector<Continuation>> shares(static_cast<size_t>(recipe.parallel.data));
  EXPECT_THAT(
      TrainingRun::OnRanks(
          recipe,
          [&](comm::World& world) -> absl::Status {
            GRAFT_ASSIGN_OR_RETURN(const auto data, Dataset::Open(run.data().path()));
            GRAFT_ASSIGN_OR_RETURN(const auto model,
                                   LoadedModel::Load(recipe, world, {.sequence_length = 32}));
            GRAFT_ASSIGN_OR_RETURN(auto answers, Generate(*model, *data, data->size(), options));
            if (model->is_last_stage()) shares[static_cast<size_t>(model->data_rank())] = answers;
            return absl::OkStatus();
          }),
      IsOk());
  std::vector<Continuation> all;
  for (const auto& share : shares) all.insert(all.end(), share.begin(), share.end());
  return all;
}

class GeneratorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    recipe_ = run_.NewRecipe("out");
    ASSERT_THAT(TrainingRun::Train(recipe_), IsOk());
    recipe_.adapter.init_from = run_.outputs().Path("out/adapter");
  }
  TrainingRun run_;
  Recipe recipe_;
};

TEST_F(GeneratorTest, TheCacheAnswersAsAFullForwardPassDoes) {
  const std::vector<Continuation> answers = GenerateOn(run_, recipe_, {.max_new_tokens = 6});
  ASSERT_EQ(answers.size(), 21u);
  ASSERT_THAT(
      TrainingRun::OnRanks(
          recipe_,
          [&](comm::World& world) -> absl::Status {
            GRAFT_ASSIGN_OR_RETURN(const auto model,
                                   LoadedModel::Load(recipe_, world, {.sequence_length = 32}));
            at::NoGradGuard no_grad;
            for (const Continuation& answer : answers) {
              models::MicroBatch batch;
              batch.tokens = answer.prompt;
              batch.tokens.insert(batch.tokens.end(), answer.tokens.begin(), answer.tokens.end());
              const auto length = static_cast<int64_t>(batch.tokens.size());
              const auto prompt = static_cast<int64_t>(answer.prompt.size());
              batch.segments = {
                  {.sample_id = 0, .begin = 0, .length = length, .prompt_length = prompt}};
              std::vector<int64_t> rows;
              for (int64_t i = 0; i < length; ++i) batch.positions.push_back(i);
              for (int64_t i = prompt - 1; i + 1 < length; ++i) rows.push_back(i);
              models::SiteContext context;
              context.batch = &batch;
              models::Backbone& backbone = model->stage().backbone(0);
              const torch::Tensor logits =
                  backbone.Logits(backbone.Layers(backbone.Embed(context), context), rows);
              const torch::Tensor chosen = at::argmax(logits, 1);
              for (size_t i = 0; i < rows.size(); ++i) {
                EXPECT_EQ(chosen[static_cast<int64_t>(i)].item<int64_t>(), answer.tokens[i])
                    << answer.sample_id;
              }
            }
            return absl::OkStatus();
          }),
      IsOk());
}

TEST_F(GeneratorTest, EveryLayoutGivesTheSameAnswersInDataSetOrder) {
  for (const GenerateOptions& options : {GenerateOptions{.max_new_tokens = 6},
                                         GenerateOptions{.max_new_tokens = 6,
                                         .sampling = {.temperature = 1.0, .top_p = 0.9, .seed = 3}},
                                         GenerateOptions{.max_new_tokens = 6, .beams = 3}}) {
    const std::vector<Continuation> expected = GenerateOn(run_, recipe_, options);
    for (const auto& [data, pipeline, schedule] :
         {std::tuple{2, 1, "1f1b"}, std::tuple{1, 2, "1f1b"}, std::tuple{2, 2, "1f1b"},
          std::tuple{1, 2, "interleaved"}}) {
      Recipe other = recipe_;
      other.parallel.data = data;
      other.parallel.pipeline = pipeline;
      other.parallel.schedule = schedule;
      const std::vector<Continuation> answers = GenerateOn(run_, other, options);
      ASSERT_EQ(answers.size(), expected.size());
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_EQ(answers[i].sample_id, 1000 + static_cast<int64_t>(i));
        EXPECT_EQ(answers[i].tokens, expected[i].tokens)
            << data << "x" << pipeline << " sample " << i;
      }
    }
  }
}

}  // namespace
}  // namespace graft::trainer
