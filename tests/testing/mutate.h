// Random damage for tests of readers: the same damage for the same seed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"

namespace graft::testing {

// One to three of: change a byte, cut a range, repeat a range, insert noise, change a digit, cut
// the end. Half of the damage hits the first `dense` bytes, where headers are.
inline std::string Mutate(const std::string& valid, uint64_t seed, std::size_t dense = 512) {
  std::mt19937_64 random(seed);
  std::string bytes = valid;
  const auto below = [&](std::size_t n) { return n == 0 ? 0 : random() % n; };
  const std::size_t count = 1 + below(3);
  for (std::size_t i = 0; i < count && !bytes.empty(); ++i) {
    const std::size_t limit = below(2) == 0 ? std::min(dense, bytes.size()) : bytes.size();
    const std::size_t at = below(limit);
    const std::size_t length = std::min<std::size_t>(1 + below(16), bytes.size() - at);
    switch (below(6)) {
      case 0:
        bytes[at] = static_cast<char>(random());
        break;
      case 1:
        bytes.erase(at, length);
        break;
      case 2:
        bytes.insert(at, bytes.substr(at, length));
        break;
      case 3:
        for (std::size_t k = 0; k < length; ++k) bytes.insert(at, 1, static_cast<char>(random()));
        break;
      case 4: {
        const std::size_t digit = bytes.find_first_of("0123456789", at);
        if (digit != std::string::npos) bytes[digit] = static_cast<char>('0' + below(10));
        break;
      }
      default:
        bytes.resize(at);
    }
  }
  return bytes;
}

// What a reader may say of a damaged file: nothing, or one line of kind input that names the file.
inline void ExpectCleanOutcome(const absl::Status& status, const std::string& file, uint64_t seed) {
  if (status.ok()) return;
  const std::string message(status.message());
  EXPECT_EQ(KindOf(status), ErrorKind::kInput) << "seed " << seed << ": " << status;
  EXPECT_THAT(message, ::testing::HasSubstr(file)) << "seed " << seed;
  EXPECT_EQ(message.find('\n'), std::string::npos) << "seed " << seed << ": " << message;
  EXPECT_LT(message.size(), 2000u) << "seed " << seed;
}

}  // namespace graft::testing
