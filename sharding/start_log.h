// checkpoints/starts.jsonl: one line for each start of a run, with the step it began from and the
// newest step it committed. Numbers the starts and tells when a run goes in circles (reliability.md
// 1.4 item 5). Used by the checkpointer on rank 0. Links without LibTorch and MPI.
//
// The file only informs: a damaged line is passed over, a resume works without it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace graft::sharding {

class StartLog {
 public:
  // Reads the file, if there is one. Kind io.
  static absl::StatusOr<StartLog> Open(const std::string& checkpoints);

  // Of this start, from 1.
  int64_t number() const { return number_; }
  // The last two starts began from `step`, committed nothing newer and did not end in an orderly
  // way: finished, or stopped on request.
  bool LooksStuck(int64_t step) const;

  // Each rewrites the file by rename. Kind io.
  absl::Status Begin(int64_t from_step);
  absl::Status Committed(int64_t step);
  absl::Status EndedOrderly();

 private:
  struct Line {
    int64_t start = 0, from_step = 0, committed_step = -1;  // -1 = none
    bool orderly = false;
  };
  explicit StartLog(std::string path) : path_(std::move(path)) {}
  static std::vector<Line> Parse(const std::string& text);
  absl::Status Write() const;

  std::string path_;
  std::vector<Line> lines_;  // after Begin the last one is this start's
  int64_t number_ = 1;
};

}  // namespace graft::sharding
