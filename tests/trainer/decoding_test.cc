#include "trainer/decoding.h"

#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft::trainer {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<std::pair<int64_t, int64_t>> PairsOf(const std::vector<models::SequenceFork>& forks) {
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (const models::SequenceFork& fork : forks) pairs.emplace_back(fork.parent, fork.child);
  return pairs;
}

// Accept without beams moves no sequence.
std::vector<int64_t> Ended(DecodingQueue& queue, const std::vector<int64_t>& tokens) {
  const SequenceChange change = queue.Accept(tokens);
  EXPECT_THAT(change.forks, IsEmpty());
  return change.ended;
}

TEST(DecodingQueueTest, PromptsRunWholeThenOneTokenAtATime) {
  DecodingQueue queue({{70, {5, 6, 7}}, {71, {8}}},
                      {.max_new_tokens = 2, .max_positions = 100, .end_tokens = {}, .width = 4});
  models::MicroBatch batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(5, 6, 7, 8));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(queue.rows(), ElementsAre(2, 3));
  EXPECT_THAT(Ended(queue, {10, 20}), ElementsAre());

  batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(10, 20));
  EXPECT_THAT(batch.positions, ElementsAre(3, 1));
  EXPECT_EQ(batch.segments[1].sample_id, 1);
  EXPECT_THAT(Ended(queue, {11, 21}), ElementsAre(0, 1));
  EXPECT_TRUE(queue.done());
  EXPECT_EQ(queue.results()[0].sample_id, 70);
  EXPECT_THAT(queue.results()[0].tokens, ElementsAre(10, 11));
  EXPECT_THAT(queue.results()[1].tokens, ElementsAre(20, 21));
}

TEST(DecodingQueueTest, ASoftPromptStandsInFrontOfEachPromptOnce) {
  DecodingQueue queue(
      {{70, {5, 6}, 2}},
      {.max_new_tokens = 9, .max_positions = 7, .virtual_rows = 3, .end_tokens = {}, .width = 4});
  models::MicroBatch batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(0, 0, 0, 5, 6));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_EQ(batch.segments[0].virtual_rows, 3);
  EXPECT_EQ(batch.segments[0].prompt_length, 2);
  EXPECT_THAT(queue.rows(), ElementsAre(4));
  EXPECT_THAT(Ended(queue, {10}), ElementsAre());
  batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(10));
  EXPECT_THAT(batch.positions, ElementsAre(5));
  EXPECT_EQ(batch.segments[0].virtual_rows, 0);
  EXPECT_THAT(Ended(queue, {11}), ElementsAre(0));  // position 7 would be the eighth
}

// Two requests of which the second begins while the first goes on.
TEST(DecodingQueueTest, AnEncoderReadsThePromptAndTheDecoderBeginsWithItsOwnToken) {
  DecodingQueue queue({{70, {5, 6, 7}, 2}, {71, {8}, 1}},
                      {.max_new_tokens = 2,
                       .max_positions = 3,  // the prompt takes none of them
                       .virtual_rows = 1,
                       .end_tokens = {99},
                       .decoder_start = 4,
                       .width = 1});
  models::MicroBatch batch = queue.Next();
  ASSERT_NE(batch.source, nullptr);
  EXPECT_THAT(batch.source->tokens, ElementsAre(0, 5, 6, 7));
  EXPECT_EQ(batch.source->segments[0].prompt_length, 2);
  EXPECT_EQ(batch.source->segments[0].virtual_rows, 1);
  EXPECT_THAT(batch.tokens, ElementsAre(4));
  EXPECT_EQ(batch.segments[0].virtual_rows, 0);
  EXPECT_THAT(queue.rows(), ElementsAre(4));  // behind the four rows of the encoder
  EXPECT_THAT(Ended(queue, {10}), ElementsAre());
  batch = queue.Next();
  EXPECT_EQ(batch.source->num_rows(), 0);
  ASSERT_EQ(batch.source->segments.size(), 1u);
  EXPECT_EQ(batch.source->segments[0].sample_id, 0);
  EXPECT_THAT(batch.tokens, ElementsAre(10));
  EXPECT_THAT(batch.positions, ElementsAre(1));
  EXPECT_THAT(queue.rows(), ElementsAre(0));
  EXPECT_THAT(Ended(queue, {11}), ElementsAre(0));
  batch = queue.Next();
  EXPECT_THAT(batch.source->tokens, ElementsAre(0, 8));
  EXPECT_THAT(Ended(queue, {99}), ElementsAre(1));
  EXPECT_TRUE(queue.done());
  EXPECT_THAT(queue.results()[0].prompt, ElementsAre(5, 6, 7));
}

// The second request begins while the first one's two beams go on.
TEST(DecodingQueueTest, APromptForAnEncoderOfItsOwnRunsOnceAndPairsWithTheSegments) {
  DecodingQueue queue({{70, {5, 6}, 2, {40, 41, 42}}, {71, {8}, 1, {43}}}, {.max_new_tokens = 2,
                                                                            .max_positions = 100,
                                                                            .virtual_rows = 1,
                                                                            .end_tokens = {99},
                                                                            .width = 2,
                                                                            .beams = 2});
  models::MicroBatch batch = queue.Next();
  ASSERT_NE(batch.prompts, nullptr);
  EXPECT_THAT(batch.prompts->tokens, ElementsAre(40, 41, 42));
  ASSERT_EQ(batch.prompts->segments.size(), batch.segments.size());
  queue.Accept(std::vector<std::vector<BeamCandidate>>{
      {{0, 7, -0.1f}, {0, 8, -0.2f}, {0, 9, -0.3f}, {0, 10, -0.4f}}});
  batch = queue.Next();
  ASSERT_EQ(batch.segments.size(), 2u);
  ASSERT_EQ(batch.prompts->segments.size(), 2u);
  EXPECT_EQ(batch.prompts->num_rows(), 0);
}

TEST(DecodingQueueTest, AFinishedSequenceMakesRoomForTheNextPrompt) {
  DecodingQueue queue(
      {{1, {1}}, {2, {2}}, {3, {3, 4}}},
      {.max_new_tokens = 9, .max_positions = 100, .end_tokens = {0, 99}, .width = 2});
  queue.Next();
  EXPECT_THAT(Ended(queue, {99, 50}), ElementsAre(0));
  const models::MicroBatch batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(50, 3, 4));
  EXPECT_THAT(queue.requests(), ElementsAre(1, 2));
  EXPECT_THAT(Ended(queue, {0, 0}), ElementsAre(1, 2));
  EXPECT_TRUE(queue.done());
  EXPECT_THAT(queue.results()[1].tokens, ElementsAre(50, 0));
}

TEST(DecodingQueueTest, StopsAtTheLastPosition) {
  DecodingQueue queue({{1, {1, 2, 3}}},
                      {.max_new_tokens = 9, .max_positions = 5, .end_tokens = {}, .width = 1});
  queue.Next();
  EXPECT_THAT(Ended(queue, {7}), ElementsAre());
  queue.Next();
  EXPECT_THAT(Ended(queue, {8}), ElementsAre(0));
}

TEST(DecodingQueueTest, ThePromptOfASearchRunsOnceAndItsBeamsFollow) {
  DecodingQueue queue({{70, {5, 6}}, {71, {8}}}, {.max_new_tokens = 3,
                                                  .max_positions = 100,
                                                  .virtual_rows = 1,
                                                  .end_tokens = {99},
                                                  .width = 4,
                                                  .beams = 2});
  models::MicroBatch batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(0, 5, 6, 0, 8));
  EXPECT_THAT(queue.rows(), ElementsAre(2, 4));
  EXPECT_EQ(batch.segments[1].sample_id, 2);
  EXPECT_EQ(queue.search(1).running()[1].score, -1e9f);
  SequenceChange change = queue.Accept({{{0, 10, -1}, {0, 11, -2}, {0, 12, -3}, {0, 13, -4}},
                                        {{0, 20, -1}, {0, 21, -2}, {0, 22, -3}, {0, 23, -4}}});
  EXPECT_THAT(change.ended, IsEmpty());
  EXPECT_THAT(PairsOf(change.forks),
              ElementsAre(std::pair(0, 0), std::pair(0, 1), std::pair(2, 2), std::pair(2, 3)));

  batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(10, 11, 20, 21));
  EXPECT_THAT(batch.positions, ElementsAre(3, 3, 2, 2));
  EXPECT_THAT(queue.rows(), ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(batch.segments[3].sample_id, 3);
  EXPECT_EQ(batch.segments[0].prompt_length, 0);
  // The first request goes on from its second beam alone; the second ends both, and no running beam
  // can become better.
  change = queue.Accept({{{1, 14, -3}, {1, 15, -4}, {0, 14, -5}, {0, 15, -6}},
                         {{0, 99, -2}, {1, 99, -3}, {0, 24, -9}, {1, 24, -9}}});
  EXPECT_THAT(change.ended, ElementsAre(2, 3));
  EXPECT_THAT(PairsOf(change.forks), ElementsAre(std::pair(1, 0), std::pair(1, 1)));
  EXPECT_THAT(queue.results()[1].tokens, ElementsAre(20, 99));

  batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(14, 15));
  change = queue.Accept(
      std::vector<std::vector<BeamCandidate>>{{{1, 7, -5}, {0, 7, -6}, {0, 8, -7}, {1, 8, -8}}});
  EXPECT_THAT(change.ended, ElementsAre(0, 1));
  EXPECT_TRUE(queue.done());
  EXPECT_THAT(queue.results()[0].tokens, ElementsAre(11, 15, 7));
}

TEST(DecodingQueueTest, SearchesShareTheWidth) {
  DecodingQueue queue(
      {{1, {1}}, {2, {2}}, {3, {3}}},
      {.max_new_tokens = 1, .max_positions = 100, .end_tokens = {}, .width = 5, .beams = 2});
  EXPECT_THAT(queue.Next().tokens, ElementsAre(1, 2));
  queue.Accept({{{0, 4, -1}, {0, 5, -2}, {0, 6, -3}, {0, 7, -4}},
                {{0, 4, -1}, {0, 5, -2}, {0, 6, -3}, {0, 7, -4}}});
  EXPECT_THAT(queue.Next().tokens, ElementsAre(3));
}

}  // namespace
}  // namespace graft::trainer
