// A rank's flight recorder as a file, <output>/flight/rank-NNNNN.json, and back (reliability.md
// 4.2). Written by the watchdog when a run hangs or fails, read by `graft inspect`. At most 1 MiB.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/flight_recorder.h"

namespace graft::comm {

// One operation of a dump, as FlightEntry; op and type own their text. Microseconds of the rank's
// node clock, 0 = it has not come to that.
struct FlightOperation {
  int64_t sequence = 0;
  int group = -1;
  int64_t number = 0;
  std::string op, type;
  int64_t peer = -1;
  int64_t bytes = 0;
  int64_t step = -1;
  int64_t micro_batch = -1;
  int64_t enqueued_us = 0;
  int64_t waited_us = 0;
  int64_t finished_us = 0;
};

struct FlightDump {
  int rank = 0;
  int size = 1;
  std::string host;
  int data_rank = -1;  // -1 = not known yet
  int stage = -1;
  std::string start;      // the same text on all ranks of one start of the job
  int64_t written_s = 0;  // seconds since 1970
  std::string reason;     // why it was written
  std::string phase;
  int64_t step = -1;
  int64_t waiting = 0;  // sequence of the operation that the main thread waits for; 0 = it computes
  int64_t now_us = 0;   // of the same clock as the operations' times
  std::vector<FlightGroup> groups;
  std::vector<FlightOperation> operations;  // oldest first
};

// "rank-00003.json".
std::string FlightFileName(int rank);
// True for such a name; `rank` may be null.
bool ParseFlightFileName(const std::string& name, int* rank);

// Takes what the recorder holds now into `dump`.
void TakeRecorder(const FlightRecorder& recorder, FlightDump* dump);
std::string ToJson(const FlightDump& dump);
// Writes the file of dump.rank into `folder`, which it makes. Kind io.
absl::Status WriteFlightDump(const std::string& folder, const FlightDump& dump);
// Kind input naming file and key.
absl::StatusOr<FlightDump> ReadFlightDump(const std::string& path);

}  // namespace graft::comm
