// Agreements between ranks, built on Communicator: one status for all, strings from all. All ranks must call.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "comm/communicator.h"

namespace graft::comm {

// All ranks get the same status: OK when all are, else the error of the lowest failing rank (with "rank N: " in front when
// size > 1). Ends every set-up phase, so that one rank's missing file stops all ranks with that message.
absl::Status AgreeOnStatus(Communicator& comm, const absl::Status& mine);
// Every rank's string, in rank order, on every rank.
std::vector<std::string> AllGatherStrings(Communicator& comm, const std::string& mine);
std::string BroadcastString(Communicator& comm, const std::string& value, int root);
// The lowest rank whose string differs from rank 0's, or -1. Used for plan hashes.
int FirstDifferingRank(Communicator& comm, const std::string& mine);

}  // namespace graft::comm
