// Philox4x32-10 and its keys: every random draw of graft is a pure function of (seed, purpose, step, layer, site, counter), so it
// depends on neither rank, micro-batch, packing nor stage, and a recomputation draws the same mask (methods.md 1.2).
#pragma once

#include <array>
#include <cstdint>

namespace graft {

using PhiloxBlock = std::array<uint32_t, 4>;

enum class RandomPurpose : uint64_t {
  kInit = 1, kAdapterDropout = 2, kGeneratorDropout = 3, kHeadDropout = 4, kBackboneDropout = 5, kRandomScore = 6, kSampling = 7,
  kShuffle = 8,
};

// splitmix64: adds 0x9E3779B97F4A7C15, then mixes.
uint64_t SplitMix64(uint64_t x);

// K(seed, purpose, step, layer, site): h = splitmix64(seed), then h = splitmix64(h xor v) for each next v.
uint64_t PhiloxKey(uint64_t seed, RandomPurpose purpose, uint64_t step, uint64_t layer, uint64_t site);

// Ten rounds. Key: low half first.
PhiloxBlock Philox(uint64_t key, PhiloxBlock counter);

// (x + 0.5) / 2^32.
inline double PhiloxUniform(uint32_t x) { return (static_cast<double>(x) + 0.5) / 4294967296.0; }

// Initial values: e = flat index; counter = (e/4 low, e/4 high, tensor number, 0); lane e mod 4.
void PhiloxFillUniform(uint64_t key, uint32_t tensor_number, double low, double high, float* out, int64_t count);
// Normals by Box-Muller on lanes (0,1), (2,3), in double, then float32.
void PhiloxFillNormal(uint64_t key, uint32_t tensor_number, double mean, double stddev, float* out, int64_t count);

}  // namespace graft
