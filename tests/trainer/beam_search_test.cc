#include "trainer/beam_search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft::trainer {
namespace {

using testing::ElementsAre;

constexpr int64_t kEnd = 9;

std::vector<std::vector<int64_t>> TokensOf(const BeamSearch& search) {
  std::vector<std::vector<int64_t>> tokens;
  for (const Beam& beam : search.running()) tokens.push_back(beam.tokens);
  return tokens;
}

TEST(BeamSearchTest, StartsWithOneBeamThatCounts) {
  const BeamSearch search({.beams = 3, .max_new_tokens = 4, .end_tokens = {kEnd}});
  ASSERT_EQ(search.running().size(), 3u);
  EXPECT_EQ(search.running()[0].score, 0.0f);
  EXPECT_EQ(search.running()[1].score, -1e9f);
  EXPECT_FALSE(search.done());
}

TEST(BeamSearchTest, EveryEndTokenOfABeamFindsItsReplacement) {
  EXPECT_EQ(BeamSearch::CandidatesPerStep(4, {}), 8);
  EXPECT_EQ(BeamSearch::CandidatesPerStep(4, {9}), 8);
  EXPECT_EQ(BeamSearch::CandidatesPerStep(4, {7, 8, 9}), 16);
}

TEST(BeamSearchTest, BeamsGoOnFromTheirParents) {
  BeamSearch search({.beams = 2, .max_new_tokens = 9, .end_tokens = {kEnd}});
  search.Advance({{0, 5, -1.0f}, {0, 6, -1.5f}, {0, 7, -2.0f}, {0, 8, -2.5f}});
  EXPECT_THAT(TokensOf(search), ElementsAre(ElementsAre(5), ElementsAre(6)));
  search.Advance({{1, 3, -2.0f}, {1, 4, -2.1f}, {0, 3, -3.0f}, {0, 4, -4.0f}});
  EXPECT_THAT(TokensOf(search), ElementsAre(ElementsAre(6, 3), ElementsAre(6, 4)));
  EXPECT_EQ(search.running()[0].parent, 1);
  EXPECT_EQ(search.running()[1].parent, 1);
  EXPECT_FALSE(search.done());
}

// Scores are divided by the length, the end token counted: 6 / 3 beats 5 / 2.
TEST(BeamSearchTest, ALongerSequenceWinsByItsMean) {
  BeamSearch search({.beams = 2, .max_new_tokens = 9, .end_tokens = {kEnd}});
  search.Advance({{0, 5, -1.0f}, {0, 6, -2.0f}, {0, 7, -20.0f}, {0, 8, -21.0f}});
  search.Advance({{0, kEnd, -5.0f}, {0, 3, -5.5f}, {1, 3, -5.8f}, {1, 4, -9.0f}});
  EXPECT_THAT(TokensOf(search), ElementsAre(ElementsAre(5, 3), ElementsAre(6, 3)));
  EXPECT_FALSE(search.done());
  search.Advance({{0, kEnd, -6.0f}, {1, 4, -7.0f}, {0, 4, -7.9f}, {1, 5, -9.0f}});
  // Both have ended with means -2.5 and -2.0; the best running one has -7 / 3 and could replace the
  // worse of them.
  EXPECT_FALSE(search.done());
  search.Advance({{0, 1, -11.0f}, {1, 1, -12.0f}, {0, 2, -13.0f}, {1, 2, -14.0f}});
  EXPECT_TRUE(search.done());  // -11 / 4 < -2.5
  EXPECT_THAT(search.answer(), ElementsAre(5, 3, kEnd));
}

TEST(BeamSearchTest, AnEndBeyondTheFirstBeamsIsNoAnswer) {
  BeamSearch search({.beams = 2, .max_new_tokens = 2, .end_tokens = {kEnd}});
  search.Advance({{0, 5, -1.0f}, {0, 6, -1.1f}, {0, kEnd, -1.2f}, {0, 8, -9.0f}});
  EXPECT_THAT(TokensOf(search), ElementsAre(ElementsAre(5), ElementsAre(6)));
  search.Advance({{0, 1, -8.0f}, {1, 1, -8.5f}, {0, 2, -9.0f}, {1, 2, -9.5f}});
  EXPECT_TRUE(search.done());
  EXPECT_THAT(search.answer(), ElementsAre(5, 1));  // -4.0, though the end alone had -1.2
}

TEST(BeamSearchTest, TheLastTokenEndsAllBeams) {
  BeamSearch search({.beams = 2, .max_new_tokens = 1, .end_tokens = {}});
  search.Advance({{0, 5, -1.0f}, {0, 6, -1.5f}, {0, 7, -2.0f}, {0, 8, -2.5f}});
  EXPECT_TRUE(search.done());
  EXPECT_THAT(search.answer(), ElementsAre(5));
}

TEST(TopIndicesTest, LargestFirst) {
  EXPECT_THAT(TopIndices({1, 5, 3, 4}, 3), ElementsAre(1, 3, 2));
  EXPECT_THAT(TopIndices({1, 5, 3, 4}, 4), ElementsAre(1, 3, 2, 0));
}

}  // namespace
}  // namespace graft::trainer
