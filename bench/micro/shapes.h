// The shapes that micro-benchmarks measure: SmolLM2-135M with the tokens of one micro-batch, 4 x
// 256.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/ATen.h>

#include "models/micro_batch.h"

namespace graft::bench {

inline constexpr int64_t kHidden = 576, kKeyValue = 192, kInner = 1536, kVocabulary = 49152;
inline constexpr int64_t kSamples = 4, kLength = 256, kTokens = kSamples * kLength;

inline torch::Dtype DtypeOf(bool bfloat16) { return bfloat16 ? at::kBFloat16 : at::kFloat; }

inline std::vector<models::Segment> Segments() {
  std::vector<models::Segment> segments;
  for (int64_t i = 0; i < kSamples; ++i) {
    segments.push_back({.sample_id = i, .begin = i * kLength, .length = kLength});
  }
  return segments;
}

}  // namespace graft::bench
