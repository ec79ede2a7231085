#include "base/philox.h"

#include <cmath>

namespace graft {
namespace {

constexpr double kTwoPi = 6.283185307179586476925286766559;

PhiloxBlock BlockOfElement(uint64_t key, uint32_t tensor_number, uint64_t block) {
  return Philox(
      key, {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), tensor_number, 0});
}

}  // namespace

uint64_t SplitMix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t PhiloxKey(uint64_t seed, RandomPurpose purpose, uint64_t step, uint64_t layer,
                   uint64_t site) {
  uint64_t h = SplitMix64(seed);
  for (const uint64_t v : {static_cast<uint64_t>(purpose), step, layer, site}) {
    h = SplitMix64(h ^ v);
  }
  return h;
}

// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.
PhiloxBlock Philox(uint64_t key, PhiloxBlock counter) {
  auto low = static_cast<uint32_t>(key);
  auto high = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {
        static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ low, static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ high, static_cast<uint32_t>(product0)};
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return counter;
}

void PhiloxFillUniform(uint64_t key, uint32_t tensor_number, double low, double high, float* out,
                       int64_t count) {
  for (int64_t e = 0; e < count; e += 4) {
    const PhiloxBlock block = BlockOfElement(key, tensor_number, static_cast<uint64_t>(e / 4));
    for (int64_t lane = 0; lane < 4 && e + lane < count; ++lane) {
      out[e + lane] =
          static_cast<float>(low + (high - low) * PhiloxUniform(block[static_cast<size_t>(lane)]));
    }
  }
}

void PhiloxFillNormal(uint64_t key, uint32_t tensor_number, double mean, double stddev, float* out,
                      int64_t count) {
  for (int64_t e = 0; e < count; e += 4) {
    const PhiloxBlock block = BlockOfElement(key, tensor_number, static_cast<uint64_t>(e / 4));
    for (size_t pair = 0; pair < 4; pair += 2) {
      const double radius = std::sqrt(-2.0 * std::log(PhiloxUniform(block[pair])));
      const double angle = kTwoPi * PhiloxUniform(block[pair + 1]);
      const double normals[2] = {radius * std::cos(angle), radius * std::sin(angle)};
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t at = e + static_cast<int64_t>(pair) + i;
        if (at < count) out[at] = static_cast<float>(mean + stddev * normals[i]);
      }
    }
  }
}

}  // namespace graft
