// Continues the prompts of a data set with a key-value cache: data ranks share the prompts,
// pipeline stages hand hidden states on, the last stage chooses the tokens. Greedy, or sampled by
// counter-based random numbers that depend on neither rank nor batch, or by beam search. Used by
// `generate`.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/data/dataset.h"
#include "trainer/decoding.h"
#include "trainer/loaded_model.h"
#include "trainer/token_choice.h"

namespace graft::trainer {

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
