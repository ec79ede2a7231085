#include "trainer/generator.h"

#include <cmath>
#include <cstring>

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

using testing::FailsWith;
using testing::IsOk;
using testing::TempFolder;
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

// Chi-square of 20,000 draws against the exact probabilities, over sample ids and over positions.
TEST(ChooseTokenTest, TemperatureAndTopPGiveTheExactProbabilities) {
  constexpr int64_t kDraws = 20'000;
  const at::Tensor logits = at::tensor({2.0f, -1.0f, 0.5f, 1.5f, 0.0f, 1.0f, -0.5f, 0.2f});
  const double temperature = 0.7, top_p = 0.8;
  const at::Tensor softmax = at::softmax(logits.to(at::kDouble) / temperature, 0);
  // 0.49, 0.24 and 0.12 are the largest: two of them do not reach 0.8, three do.
  const double kept =
      softmax[0].item<double>() + softmax[3].item<double>() + softmax[5].item<double>();
  ASSERT_LT(kept - softmax[5].item<double>(), top_p);
  ASSERT_GT(kept, top_p);
  for (const bool over_positions : {false, true}) {
    std::vector<double> all(8), cut(8);
    for (int64_t i = 0; i < kDraws; ++i) {
      const int64_t sample = over_positions ? 7 : i, position = over_positions ? i : 7;
      const SamplingOptions options = {.temperature = temperature, .seed = 11};
      ++all[static_cast<size_t>(ChooseToken(logits, options, sample, position))];
      const SamplingOptions nucleus = {.temperature = temperature, .top_p = top_p, .seed = 12};
      ++cut[static_cast<size_t>(ChooseToken(logits, nucleus, sample, position))];
    }
    double chi_square = 0, chi_square_cut = 0;
    for (size_t token = 0; token < 8; ++token) {
      const double expected = kDraws * softmax[static_cast<int64_t>(token)].item<double>();
      chi_square += std::pow(all[token] - expected, 2) / expected;
      const bool stays = token == 0 || token == 3 || token == 5;
      if (stays) {
        chi_square_cut += std::pow(cut[token] - expected / kept, 2) * kept / expected;
      } else {
        EXPECT_EQ(cut[token], 0) << token;
      }
    }
    EXPECT_LT(chi_square, 24.3);      // 7 degrees of freedom, p = 0.001
    EXPECT_LT(chi_square_cut, 13.8);  // 2 degrees of freedom
  }
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
                                     const GenerateOptions& options, int64_t num_samples = 21) {
  std::vector<std::vector<Continuation>> shares(static_cast<size_t>(recipe.parallel.data));
  EXPECT_THAT(
      TrainingRun::OnRanks(
          recipe,
          [&](comm::World& world) -> absl::Status {
            GRAFT_ASSIGN_OR_RETURN(const auto data, Dataset::Open(run.data().path()));
            GRAFT_ASSIGN_OR_RETURN(const auto model,
                                   LoadedModel::Load(recipe, world, {.sequence_length = 32}));
            GRAFT_ASSIGN_OR_RETURN(auto answers, Generate(*model, *data, num_samples, options));
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

// 21 samples do not fit beside each other, three do.
TEST_F(GeneratorTest, TheRestOfTheBatchChangesNothing) {
  for (const GenerateOptions& options :
       {GenerateOptions{.sampling = {.temperature = 1.0, .seed = 5}},
        GenerateOptions{.beams = 6}}) {
    GenerateOptions some = options;
    some.max_new_tokens = 5;
    const std::vector<Continuation> all = GenerateOn(run_, recipe_, some);
    const std::vector<Continuation> three = GenerateOn(run_, recipe_, some, 3);
    ASSERT_EQ(three.size(), 3u);
    for (size_t i = 0; i < three.size(); ++i) EXPECT_EQ(three[i].tokens, all[i].tokens) << i;
  }
}

absl::Status TryToGenerate(const Recipe& recipe, const std::string& data_folder,
                           const GenerateOptions& options) {
  return TrainingRun::OnRanks(recipe, [&](comm::World& world) -> absl::Status {
    GRAFT_ASSIGN_OR_RETURN(const auto data, Dataset::Open(data_folder));
    GRAFT_ASSIGN_OR_RETURN(const auto model,
                           LoadedModel::Load(recipe, world, {.sequence_length = 32}));
    try {
      return Generate(*model, *data, data->size(), options).status();
    } catch (const StatusError& error) {
      return error.status();
    }
  });
}

// An adapter of huge numbers overflows in the first layer.
TEST_F(GeneratorTest, LogitsThatAreNotFiniteAreNoAnswer) {
  const std::string file = "out/adapter/adapter_model.safetensors";
  std::string bytes = run_.outputs().Read(file);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  const float huge = 1e30f;
  for (size_t i = sizeof header + header; i + sizeof huge <= bytes.size(); i += sizeof huge) {
    std::memcpy(&bytes[i], &huge, sizeof huge);
  }
  run_.outputs().Write(file, bytes);
  for (const int64_t beams : {1, 2}) {
    EXPECT_THAT(TryToGenerate(recipe_, run_.data().path(), {.beams = beams}),
                FailsWith(ErrorKind::kNumeric, "sample 1000: the logits"));
  }
}

TEST_F(GeneratorTest, RefusesBeamsThatTheVocabularyCannotServe) {
  // llama-tiny has 256 tokens and names no end token: each step needs two candidates a beam.
  EXPECT_THAT(TryToGenerate(recipe_, run_.data().path(), {.max_new_tokens = 1, .beams = 128}),
              IsOk());
  EXPECT_THAT(TryToGenerate(recipe_, run_.data().path(), {.max_new_tokens = 1, .beams = 129}),
              FailsWith(ErrorKind::kRecipe, "generate.beams: found 129"));
}

TEST_F(GeneratorTest, NamesTheSampleWithoutAPrompt) {
  const TempFolder folder;
  testing::TinyDataset().Write(folder);  // sample 102 has no prompt
  EXPECT_THAT(TryToGenerate(recipe_, folder.path(), {}),
              FailsWith(ErrorKind::kInput, "prompt_lengths: sample 102 has 0"));
}

}  // namespace
}  // namespace graft::trainer
