// Which tokens of which requests the next decoding step runs: new prompts whole, running requests
// by the last token of each of their sequences (one, or the beams of a search), at most `width`
// sequences at a time; a finished request makes room for the next prompt. Used by the generator.
// Every pipeline stage keeps its own copy, fed with the same tokens, so all stages run the same
// micro-batches without exchanging shapes. No LibTorch, no sampling.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "models/micro_batch.h"
#include "models/sequence_fork.h"
#include "trainer/beam_search.h"

namespace graft::trainer {

struct Prompt {
  int64_t sample_id = 0;
  std::vector<int64_t> tokens;  // at least one
  // Leading tokens that methods read; a decoder's prompt is all of them.
  int64_t prompt_length = 0;
  std::vector<int64_t> encoder_ids = {};  // the prompt for a separate encoder
};

struct Continuation {
  int64_t sample_id = 0;
  std::vector<int64_t> prompt;
  std::vector<int64_t> tokens;  // generated, the end token included when there is one
};

// What is kept per sequence (caches, states of methods) follows: `ended` go, then `forks` happen.
struct SequenceChange {
  std::vector<int64_t> ended;
  std::vector<models::SequenceFork> forks;
};

class DecodingQueue {
 public:
  struct Options {
    int64_t max_new_tokens = 128;
    int64_t max_positions = 0;  // of the decoder: what stands before the answer, and the answer
    int64_t virtual_rows = 0;   // of a soft prompt in front of each prompt
    std::vector<int64_t> end_tokens;  // any of them ends a sequence
    // An encoder reads the prompt, and the decoder begins with this token; -1: there is no encoder.
    int64_t decoder_start = -1;
    int64_t width = 16;
    int64_t beams = 1;  // 1: one sequence per request, whose tokens the caller chooses
  };
  DecodingQueue(std::vector<Prompt> prompts, Options options);

  bool done() const { return running_.empty() && next_ == results_.size(); }
  // The next step. Segment::sample_id is the sequence number, which names it in the caches: request
  // (index of the prompt) * beams + beam. A prompt runs once, as its request's first sequence.
  // Positions go on where the sequence stands. Behind an encoder, `source` has one segment for each
  // of the decoder's: the prompt where a request begins, without rows where it goes on.
  models::MicroBatch Next();
  // Of the state of the batch that Next gave (boundary_rows() of it): the last row of each of the
  // decoder's segments, whose logits choose the next token.
  const std::vector<int64_t>& rows() const { return rows_; }
  // The requests of the step, in the order of their rows.
  const std::vector<int64_t>& requests() const { return running_; }
  // With beams: the search of a running request. A request that begins has one row, else one per
  // beam.
  const BeamSearch& search(int64_t request) const { return searches_.at(request); }

  // Without beams: one token per row.
  SequenceChange Accept(const std::vector<int64_t>& tokens);
  // With beams: each running request's best candidates.
  SequenceChange Accept(const std::vector<std::vector<BeamCandidate>>& candidates);

  // In the order of the prompts; complete when done().
  const std::vector<Continuation>& results() const { return results_; }

 private:
  void Begin(int64_t request);
  int64_t Made(int64_t request) const;
  std::vector<int64_t> LastTokens(int64_t request) const;
  void AppendPrompt(int64_t request, models::MicroBatch* batch, models::MicroBatch* source);
  // Returns its last row.
  static int64_t AppendSegment(int64_t sequence, const std::vector<int64_t>& ids,
                               int64_t virtual_rows, int64_t prompt_length, int64_t position,
                               models::MicroBatch* batch);
  bool has_encoder() const { return options_.decoder_start >= 0; }
  int64_t RowsBeforeAnswer(int64_t request) const;
  int64_t LongestAnswer(int64_t request) const;
  bool Ended(int64_t request) const;

  Options options_;
  std::vector<Continuation> results_;
  std::vector<Prompt> prompts_;  // by request; their tokens are in results_
  bool has_encoder_ids_ = false;
  std::map<int64_t, BeamSearch> searches_;  // of running requests
  size_t next_ = 0;                         // first prompt that has not begun
  std::vector<int64_t> running_;            // requests
  std::vector<int64_t> rows_;
};

}  // namespace graft::trainer
