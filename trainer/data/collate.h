// Lays samples of a data set one after the other into the micro-batch that every stage sees, with
// the targets already shifted, and counts tokens. Pure. No LibTorch.
#pragma once

#include <cstdint>
#include <vector>

#include "models/micro_batch.h"
#include "trainer/data/dataset.h"

namespace graft::trainer {

// Segments in the order of `samples`; positions restart at 0 in each. `virtual_rows` rows with id 0
// stand in front of each text, for a soft prompt, and count as positions. causal_lm: token t >= 1
// of a sample with loss_mask 1 is a target of row t - 1. Classification and regression have no
// token targets but a label or value for each segment. seq2seq: the input is the batch's `source`
// (with the virtual rows); the batch itself holds what the decoder reads, `decoder_start` and the
// target without its last token, and each target token is a target of the row in front of it.
// `step` counts from 1 (0 outside training), `index` is the micro-batch inside the step.
models::MicroBatch Collate(const Dataset& data, const std::vector<int64_t>& samples, int64_t step,
                           int64_t index, int64_t virtual_rows = 0, int64_t decoder_start = 0);

// The divisor of a step's loss over all `samples` of the global batch (Dataset::trained_tokens).
int64_t CountTrainedTokens(const Dataset& data, const std::vector<int64_t>& samples);
// Tokens without padding (Dataset::total_tokens), for the metrics.
int64_t CountTokens(const Dataset& data, const std::vector<int64_t>& samples);

}  // namespace graft::trainer
