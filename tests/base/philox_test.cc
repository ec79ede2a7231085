#include "base/philox.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace graft {
namespace {

// Known-answer vectors of Random123 (tests/kat_vectors, philox4x32-10).
TEST(Philox, MatchesTheKnownAnswersOfRandom123) {
  EXPECT_EQ(Philox(0, {0, 0, 0, 0}), (PhiloxBlock{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}));
  EXPECT_EQ(Philox(0xFFFFFFFFFFFFFFFF, {0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}),
            (PhiloxBlock{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}));
  // The key words are a4093822 299f31d0, low word first.
  EXPECT_EQ(Philox(0x299F31D0A4093822, {0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344}),
            (PhiloxBlock{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}));
}

// Vigna's splitmix64.c, seed 1234567: the generator's state advances by the added constant.
TEST(SplitMix64, MatchesTheReferenceSequence) {
  constexpr uint64_t kStep = 0x9E3779B97F4A7C15u;
  const uint64_t expected[] = {6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
                               4593380528125082431u, 16408922859458223821u};
  for (uint64_t i = 0; i < 5; ++i) EXPECT_EQ(SplitMix64(1234567 + i * kStep), expected[i]);
  EXPECT_EQ(SplitMix64(0), 0xE220A8397B1DCDAFu);
}

TEST(PhiloxKey, MixesSeedPurposeStepLayerSiteInThisOrder) {
  uint64_t h = SplitMix64(11);
  h = SplitMix64(h ^ 2);
  h = SplitMix64(h ^ 300);
  h = SplitMix64(h ^ 4);
  h = SplitMix64(h ^ 5);
  EXPECT_EQ(PhiloxKey(11, RandomPurpose::kAdapterDropout, 300, 4, 5), h);
  // A value that another implementation (Python integers) gives.
  EXPECT_EQ(PhiloxKey(0, RandomPurpose::kInit, 0, 0, 0), 0xF9AC6E337C2F0F1Eu);
}

TEST(PhiloxFill, UniformTakesElementsFromBlocksInLaneOrder) {
  const uint64_t key = PhiloxKey(1, RandomPurpose::kInit, 0, 3, 0);
  std::vector<float> values(11);
  PhiloxFillUniform(key, 1, -2.0, 2.0, values.data(), 11);
  const PhiloxBlock last = Philox(key, {2, 0, 1, 0});
  EXPECT_EQ(values[9], static_cast<float>(-2.0 + 4.0 * ((last[1] + 0.5) / 4294967296.0)));
  std::vector<float> longer(20);
  PhiloxFillUniform(key, 1, -2.0, 2.0, longer.data(), 20);
  longer.resize(11);
  EXPECT_EQ(values, longer);
  std::vector<float> other(11);
  PhiloxFillUniform(key, 2, -2.0, 2.0, other.data(), 11);
  EXPECT_NE(values, other);
}

TEST(PhiloxFill, NormalsHaveTheRightMomentsAndLanes) {
  const uint64_t key = PhiloxKey(7, RandomPurpose::kInit, 0, 0, 1);
  std::vector<float> values(40001);
  PhiloxFillNormal(key, 0, 1.0, 0.5, values.data(), static_cast<int64_t>(values.size()));
  double sum = 0, squares = 0, quads = 0;
  for (const float value : values) {
    const double z = (value - 1.0) / 0.5;
    sum += z;
    squares += z * z;
    quads += z * z * z * z;
  }
  const auto n = static_cast<double>(values.size());
  EXPECT_NEAR(sum / n, 0.0, 0.02);
  EXPECT_NEAR(squares / n, 1.0, 0.03);
  EXPECT_NEAR(quads / n, 3.0, 0.2);
  const PhiloxBlock block = Philox(key, {0, 0, 0, 0});
  const double u = (block[2] + 0.5) / 4294967296.0, v = (block[3] + 0.5) / 4294967296.0;
  const double pi = std::acos(-1.0);
  EXPECT_FLOAT_EQ(values[2],
                  static_cast<float>(1 + 0.5 * std::sqrt(-2 * std::log(u)) * std::cos(2 * pi * v)));
  EXPECT_FLOAT_EQ(values[3],
                  static_cast<float>(1 + 0.5 * std::sqrt(-2 * std::log(u)) * std::sin(2 * pi * v)));
}

}  // namespace
}  // namespace graft
