// The scalars of a run that a checkpoint keeps beside the tensors, and what must be equal for a run
// to be continued (reliability.md 1.2, 2.3). Pure; texts in, texts out. Used by the trainer.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "trainer/config.h"

namespace graft::trainer {

using TextMap = std::map<std::string, std::string>;

struct RunState {
  int64_t step = 0;     // finished steps = updates + skipped
  int64_t updates = 0;  // applied
  int64_t skipped = 0;  // not finite
  int64_t consecutive_skips = 0;
  std::deque<int64_t> recent_skips;  // steps, of the last 1,000
  std::optional<double> best_loss;   // of an evaluation
  int64_t best_step = 0;
  int64_t evaluations_since_best = 0;
  bool ended_early = false;  // eval.patience ran out: the run is complete

  // Books a step that has just finished.
  void CountStep(bool was_skipped);
  // More than 5 in a row or more than 10 in the last 1,000 steps.
  bool TooManySkips() const;
  // Books an evaluation; true = the best so far.
  bool CountEvaluation(double loss);
};

// What the trainer puts into a manifest beside step, updates and skipped; and back. Kind input
// naming the key.
TextMap StateTexts(const RunState& state);
absl::Status ReadStateTexts(const TextMap& texts, const std::string& origin, RunState* state);

// What the run reads, by fingerprint.
struct RunInputs {
  std::string model;      // fingerprint
  std::string data;       // fingerprint
  std::string tokenizer;  // sha256 or ""
  int64_t total_steps = 0;
};

// Keys and values that a continued run must share with the saved one.
TextMap FixedTexts(const Recipe& recipe, const RunInputs& inputs);
// Those that may differ and are logged.
TextMap LayoutTexts(const Recipe& recipe, int threads);

}  // namespace graft::trainer
