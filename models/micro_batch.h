// One micro-batch as every stage sees it: samples laid one after the other, without padding.
//
// Shape legend used by all tensor code: N tokens of the micro-batch (all samples together), S samples (segments), D hidden width.
// A hidden state is always (N, D): linears run on all N rows at once, attention runs per segment. So a padded batch, a packed row
// and a ragged batch are one thing, and padding costs nothing because there is none. Who cuts data into micro-batches:
// trainer/data. This header has no LibTorch in it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace graft::models {

// One sample inside a micro-batch.
struct Segment {
  int64_t sample_id = 0;      // stable id from the data set; drives dropout masks
  int64_t begin = 0;          // first row of the segment in the (N, D) hidden state
  int64_t length = 0;         // rows of the segment
  int64_t prompt_length = 0;  // leading rows of the text that are the prompt (PARA, LoPA, IDPG read only these)
  int64_t virtual_rows = 0;   // rows in front of the text that a soft prompt fills (id 0 in `tokens`); counted in length
  int64_t prompt_begin() const { return begin + virtual_rows; }
};

struct MicroBatch {
  int64_t step = 0;            // training step (from 1); 0 outside training
  int64_t index = 0;           // micro-batch number inside this rank's step
  std::vector<Segment> segments;
  std::vector<int64_t> tokens;     // N input ids (only the embedding stage reads them)
  std::vector<int64_t> positions;  // N position ids, restart at 0 in each segment
  // Supervised positions, for the last stage: row `target_rows[i]` predicts token `target_ids[i]` (already shifted).
  std::vector<int64_t> target_rows;
  std::vector<int64_t> target_ids;
  // Classification, regression: one of the two has an entry for each segment.
  std::vector<int64_t> labels;
  std::vector<float> values;

  // Encoder-decoder models: the encoder's rows of the same samples, in the same order; the fields above are the decoder's. In each
  // tensor that travels between stages the encoder's rows stand in front of the decoder's.
  std::shared_ptr<const MicroBatch> source;
  // The samples' prompts in the vocabulary of a separate prompt encoder (LoPA, IDPG), in the same order; of a sample that goes on
  // while generating, without rows. On the batch whose segments have the virtual rows. Null: the data have none.
  std::shared_ptr<const MicroBatch> prompts;

  bool has_task_labels() const { return !labels.empty() || !values.empty(); }
  int64_t num_rows() const { return segments.empty() ? 0 : segments.back().begin + segments.back().length; }
  int64_t boundary_rows() const { return num_rows() + (source ? source->num_rows() : 0); }
};

}  // namespace graft::models
