// How the next tokens are chosen from logits: greedy, sampled by counter-based random numbers that
// depend on neither rank nor batch, or the best continuations of the beams of one request. Used by
// the generator and by the engine of many tenants (tenants/engine.h).
#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "absl/status/status.h"
#include "trainer/beam_search.h"

namespace graft::trainer {

struct SamplingOptions {
  double temperature = 0;  // 0 = greedy
  double top_p = 1.0;
  uint64_t seed = 0;
};

// The next token by `logits` (V) float32. Greedy: the largest, the lowest id among equals. Else a
// draw from the smallest set of most likely tokens whose probability reaches top_p, at
// `temperature`; the draw is a pure function of (seed, sample_id, position).
int64_t ChooseToken(const torch::Tensor& logits, const SamplingOptions& options, int64_t sample_id,
                    int64_t position);

// The `count` best continuations of the running beams of one request, best first. `logits` (R, V)
// float32: a row for each beam, or one for all of a request that begins. The sums and the selection
// are those of transformers, ties included.
std::vector<BeamCandidate> BestContinuations(const torch::Tensor& logits,
                                             const std::vector<Beam>& beams, int64_t count);

// One number that is none would go through every later step unseen: kind numeric, naming the
// sample.
absl::Status CheckFinite(const torch::Tensor& logits, int64_t sample_id);

// Greedy for rows of logits (N, V) on a device, in one reading: (N), -1 where a row would not pass
// CheckFinite. GreedyTokens makes them there, HostTokens waits for them.
torch::Tensor GreedyTokens(const torch::Tensor& logits);
std::vector<int64_t> HostTokens(const torch::Tensor& tokens);
// What CheckFinite says of such a row.
absl::Status NotFinite(int64_t sample_id);

}  // namespace graft::trainer
