// What a person sees while a run trains or scores, on stderr: one line that is redrawn on a
// terminal, plain lines otherwise. Rank 0 only.
#pragma once

#include <cstdint>
#include <string>

#include "trainer/metrics.h"

namespace graft::trainer {

// "step 12/200  loss 1.2345  345 tok/s  ETA 1:02:03", and the MFU where the peak is known.
std::string ProgressText(const TrainRecord& record, int64_t total_steps, double eta_seconds);

// "1:02:03" or "2:03".
std::string DurationText(double seconds);

// One line about how far something is: redrawn on a terminal, else logged.
class StatusLine {
 public:
  explicit StatusLine(bool terminal) : terminal_(terminal) {}
  ~StatusLine() { Finish(); }
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  bool terminal() const { return terminal_; }
  void Show(const std::string& text);
  // Ends the redrawn line, so that other lines start on their own.
  void Finish();

 private:
  const bool terminal_;
  bool open_ = false;
};

class Progress {
 public:
  // every: plain lines only at multiples of it (and at the last step).
  Progress(int64_t total_steps, int64_t every, bool terminal)
      : total_steps_(total_steps), every_(every), line_(terminal) {}

  void Show(const TrainRecord& record);
  void Finish() { line_.Finish(); }

 private:
  int64_t total_steps_;
  int64_t every_;
  StatusLine line_;
  double mean_step_seconds_ = 0;  // exponential mean, for the ETA
};

// True when stderr is a terminal.
bool StderrIsTerminal();

}  // namespace graft::trainer
