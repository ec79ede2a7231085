// What the flight recorders of all ranks say together: who left none, who is behind, where the
// operations of two ranks differ (reliability.md 4.2). Pure; used by `graft inspect` and by the
// watchdog's last line.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/flight_dump.h"

namespace graft::comm {

// How the reason of a rank ends that only heard of another rank's alarm.
inline constexpr char kAlarmReason[] = " raised the alarm";

struct FlightVerdict {
  std::vector<int> missing;  // ranks without a dump
  // The first collective, in the order of its communicator, that two ranks began differently;
  // empty = none. "operation 118 of world: rank 0 AllReduce of 104 bytes float64, rank 1 Barrier".
  std::string difference;
  // The rank that has begun the fewest collectives of a communicator that others wait in; -1 =
  // nobody waits in a collective.
  int behind = -1;
  std::string behind_text;
};

// `dumps` of one run, in any order, each rank once.
FlightVerdict Judge(const std::vector<FlightDump>& dumps);
// "waits 21.3 s in AllReduce 118 of world (step 12, 104 bytes float64)", or "computes after ...".
std::string DescribeActivity(const FlightDump& dump);
// "AllReduce 118 of world"; "Recv from rank 0 of world/pipeline:1".
std::string DescribeOperation(const FlightOperation& op, const std::vector<FlightGroup>& groups);

// The dumps of the newest start in `folder` in a few lines, each ended by a line break. Kind input
// when a file is damaged or there is none.
absl::StatusOr<std::string> DescribeFlight(const std::string& folder);
// True when `folder` holds a dump.
bool IsFlightFolder(const std::string& folder);

}  // namespace graft::comm
