// Continues the prompts of a data set with a key-value cache: data ranks share the prompts,
// pipeline stages hand hidden states on, the last stage chooses the tokens. Greedy, or sampled by
// counter-based random numbers that depend on neither rank nor batch, or by beam search. Used by
// `generate`.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "absl/status/statusor.h"
#include "trainer/data/dataset.h"
#include "trainer/decoding.h"
#include "trainer/loaded_model.h"

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

struct GenerateOptions {
  int64_t max_new_tokens = 128;
  int64_t beams = 1;  // above 1: beam search (trainer/beam_search.h), sampling is not looked at
  SamplingOptions sampling = {};  // of one sequence per request
};

// Continuations of the first `num_samples` samples' prompts (their first prompt_length tokens), of
// this data rank's contiguous share, in data set order. All ranks must call; all stages of a
// replica get the same. Throws kind peer, and kind numeric for logits that are not finite. Kind
// input for a sample with an empty prompt, kind recipe for more beams than the vocabulary serves.
absl::StatusOr<std::vector<Continuation>> Generate(LoadedModel& model, const Dataset& data,
                                                   int64_t num_samples,
                                                   const GenerateOptions& options);

}  // namespace graft::trainer
