// The text of a trace in Chrome's JSON format, which ui.perfetto.dev and chrome://tracing read: a
// process per rank, with one row of what its main thread did and one for each transfer under way
// beside it. Text only; what is recorded is step_trace.h.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace graft::trainer {

// Times in nanoseconds of the rank's own monotonic clock.
struct TraceSpan {
  std::string name;
  const char* category = "";  // a string literal: "compute", "idle", "all-reduce", ...
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
  std::vector<std::pair<const char*, int64_t>> arguments;
};

struct RankTrace {
  int rank = 0;
  std::string label;                 // "data 0, stage 1"
  std::vector<TraceSpan> main;       // spans of the main thread: each two nest or are apart
  std::vector<TraceSpan> transfers;  // may overlap
};

// The events of one rank, comma-separated, on a clock that shows `offset_ns` less.
std::string TraceEvents(const RankTrace& rank, int64_t offset_ns);
// The file: the events of all ranks that have any. clock_error_ns: how far ranks may be displaced.
std::string TraceFile(const std::vector<std::string>& events, int64_t clock_error_ns);

}  // namespace graft::trainer
