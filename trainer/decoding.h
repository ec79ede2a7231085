// Which tokens of which sequences the next decoding step runs: new prompts whole, running sequences
// by their last token, at most `width` sequences at a time; a finished sequence makes room for the
// next prompt. Used by the generator. Every pipeline stage keeps its own copy, fed with the same
// tokens, so all stages run the same micro-batches without exchanging shapes. No LibTorch, no
// sampling.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "models/micro_batch.h"

namespace graft::trainer {

struct Prompt {
  int64_t sample_id = 0;
  std::vector<int64_t> tokens;  // at least one
};

struct Continuation {
  int64_t sample_id = 0;
  std::vector<int64_t> prompt;
  std::vector<int64_t> tokens;  // generated, the end token included when there is one
};

class DecodingQueue {
 public:
  struct Options {
    int64_t max_new_tokens = 128;
    int64_t max_positions = 0;        // soft prompt, prompt and answer together
    int64_t virtual_rows = 0;         // of a soft prompt in front of each prompt
    std::vector<int64_t> end_tokens;  // any of them ends a sequence
    int64_t width = 16;
  };
  DecodingQueue(std::vector<Prompt> prompts, Options options);

  bool done() const { return running_.empty() && next_ == results_.size(); }
  // The next step. Segment::sample_id is the sequence number (index of the prompt), which names it
  // in the key-value cache. Positions go on where the sequence stands.
  models::MicroBatch Next();
  // Of the batch that Next gave: the last row of each segment, whose logits choose the next token.
  const std::vector<int64_t>& rows() const { return rows_; }
  // The sequences of those rows.
  const std::vector<int64_t>& sequences() const { return running_; }
  // One token per row. Returns the sequences that ended: they leave the cache.
  std::vector<int64_t> Accept(const std::vector<int64_t>& tokens);

  // In the order of the prompts; complete when done().
  const std::vector<Continuation>& results() const { return results_; }

 private:
  bool Ended(const Continuation& sequence) const;
  Options options_;
  std::vector<Continuation> results_;
  size_t next_ = 0;               // first prompt that has not begun
  std::vector<int64_t> running_;  // sequence numbers
  std::vector<int64_t> rows_;
};

}  // namespace graft::trainer
