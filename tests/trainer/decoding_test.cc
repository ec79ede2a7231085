#include "trainer/decoding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft::trainer {
namespace {

using testing::ElementsAre;

TEST(DecodingQueueTest, PromptsRunWholeThenOneTokenAtATime) {
  DecodingQueue queue({{70, {5, 6, 7}}, {71, {8}}},
                      {.max_new_tokens = 2, .max_positions = 100, .end_tokens = {}, .width = 4});
  models::MicroBatch batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(5, 6, 7, 8));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(queue.rows(), ElementsAre(2, 3));
  EXPECT_THAT(queue.Accept({10, 20}), ElementsAre());

  batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(10, 20));
  EXPECT_THAT(batch.positions, ElementsAre(3, 1));
  EXPECT_EQ(batch.segments[1].sample_id, 1);
  EXPECT_THAT(queue.Accept({11, 21}), ElementsAre(0, 1));
  EXPECT_TRUE(queue.done());
  EXPECT_EQ(queue.results()[0].sample_id, 70);
  EXPECT_THAT(queue.results()[0].tokens, ElementsAre(10, 11));
  EXPECT_THAT(queue.results()[1].tokens, ElementsAre(20, 21));
}

TEST(DecodingQueueTest, ASoftPromptStandsInFrontOfEachPromptOnce) {
  DecodingQueue queue(
      {{70, {5, 6}}},
      {.max_new_tokens = 9, .max_positions = 7, .virtual_rows = 3, .end_tokens = {}, .width = 4});
  models::MicroBatch batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(0, 0, 0, 5, 6));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_EQ(batch.segments[0].virtual_rows, 3);
  EXPECT_EQ(batch.segments[0].prompt_length, 2);
  EXPECT_THAT(queue.rows(), ElementsAre(4));
  EXPECT_THAT(queue.Accept({10}), ElementsAre());
  batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(10));
  EXPECT_THAT(batch.positions, ElementsAre(5));
  EXPECT_EQ(batch.segments[0].virtual_rows, 0);
  EXPECT_THAT(queue.Accept({11}), ElementsAre(0));  // position 7 would be the eighth
}

TEST(DecodingQueueTest, AFinishedSequenceMakesRoomForTheNextPrompt) {
  DecodingQueue queue(
      {{1, {1}}, {2, {2}}, {3, {3, 4}}},
      {.max_new_tokens = 9, .max_positions = 100, .end_tokens = {0, 99}, .width = 2});
  queue.Next();
  EXPECT_THAT(queue.Accept({99, 50}), ElementsAre(0));
  const models::MicroBatch batch = queue.Next();
  EXPECT_THAT(batch.tokens, ElementsAre(50, 3, 4));
  EXPECT_THAT(queue.sequences(), ElementsAre(1, 2));
  EXPECT_THAT(queue.Accept({0, 0}), ElementsAre(1, 2));
  EXPECT_TRUE(queue.done());
  EXPECT_THAT(queue.results()[1].tokens, ElementsAre(50, 0));
}

TEST(DecodingQueueTest, StopsAtTheLastPosition) {
  DecodingQueue queue({{1, {1, 2, 3}}},
                      {.max_new_tokens = 9, .max_positions = 5, .end_tokens = {}, .width = 1});
  queue.Next();
  EXPECT_THAT(queue.Accept({7}), ElementsAre());
  queue.Next();
  EXPECT_THAT(queue.Accept({8}), ElementsAre(0));
}

}  // namespace
}  // namespace graft::trainer
