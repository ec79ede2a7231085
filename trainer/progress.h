// What a person sees while a run trains, on stderr: one line that is redrawn on a terminal, plain
// lines otherwise. Rank 0 only.
#pragma once

#include <cstdint>
#include <string>

#include "trainer/metrics.h"

namespace graft::trainer {

// "step 12/200  loss 1.2345  345 tok/s  ETA 1:02:03".
std::string ProgressText(const TrainRecord& record, int64_t total_steps, double eta_seconds);

class Progress {
 public:
  // every: plain lines only at multiples of it (and at the last step).
  Progress(int64_t total_steps, int64_t every, bool terminal)
      : total_steps_(total_steps), every_(every), terminal_(terminal) {}
  ~Progress() { Finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Show(const TrainRecord& record);
  // Ends the redrawn line, so that other lines start on their own.
  void Finish();

 private:
  int64_t total_steps_;
  int64_t every_;
  bool terminal_;
  bool line_open_ = false;
  double mean_step_seconds_ = 0;  // exponential mean, for the ETA
};

// True when stderr is a terminal.
bool StderrIsTerminal();

}  // namespace graft::trainer
