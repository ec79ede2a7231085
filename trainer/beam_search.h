// Beam search of one request, as HF transformers' generate runs it with num_beams = `beams`,
// do_sample=False, early_stopping=False, length_penalty=1.0 (GenerationMixin._beam_search of
// transformers 5.17), score for score in float32. Used by the decoding queue: every pipeline stage
// keeps its own copy, fed with the same candidates. It knows no model, no cache and no prompt, so a
// decoder behind an encoder is searched alike. No LibTorch.
#pragma once

#include <cstdint>
#include <vector>

namespace graft::trainer {

// One running beam continued by one token.
struct BeamCandidate {
  int64_t beam = 0;
  int64_t token = 0;
  float score = 0;  // sum of the log-probabilities of the beam's tokens, this one included
};

struct Beam {
  std::vector<int64_t> tokens;
  float score = 0;
  int64_t parent = 0;  // its number in the step before
};

// Indices of the `count` largest values, descending; equal ones in the order of at::topk on CPUs,
// which is what transformers selects with.
std::vector<int64_t> TopIndices(const std::vector<float>& values, int64_t count);

class BeamSearch {
 public:
  struct Options {
    int64_t beams = 1;
    int64_t max_new_tokens = 0;       // at least 1
    std::vector<int64_t> end_tokens;  // any of them ends a sequence
  };
  explicit BeamSearch(const Options& options);
  // Candidates of a step, over all its beams: so many that enough of them end nothing.
  static int64_t CandidatesPerStep(int64_t beams, const std::vector<int64_t>& end_tokens);

  // The beams to continue, best first. At the start all are empty and only the first counts: the
  // others' scores are out of reach.
  const std::vector<Beam>& running() const { return running_; }
  // The CandidatesPerStep best continuations of the running beams, best first.
  void Advance(const std::vector<BeamCandidate>& best);
  bool done() const { return done_; }
  // The best finished sequence, its end token included. Only when done.
  const std::vector<int64_t>& answer() const { return finished_[0].tokens; }

 private:
  struct Finished {
    std::vector<int64_t> tokens;
    float score = 0;  // divided by the number of tokens
    bool found = false;
  };
  bool Ends(int64_t token) const;
  Beam Continued(const BeamCandidate& candidate) const;
  std::vector<Finished> BestFinished(const std::vector<BeamCandidate>& best,
                                     const std::vector<bool>& ends) const;
  bool CanImprove() const;

  Options options_;
  int64_t made_ = 0;  // tokens of each running beam
  std::vector<Beam> running_;
  std::vector<Finished> finished_;  // `beams` of them, best first
  bool done_ = false;
};

}  // namespace graft::trainer
