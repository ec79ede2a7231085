// Do all ranks mean the same run? Before the first step they compare what each has worked out for
// itself from its own files (reliability.md 4.3). Used where a run is built.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "comm/communicator.h"

namespace graft::trainer {

// Compares the sha256 of `text` over all ranks. When they differ: kind bug on every rank, naming
// the first rank that differs from rank 0 and the first line. All ranks must call.
absl::Status CheckSameOnAllRanks(comm::Communicator& all, const std::string& what,
                                 const std::string& text);

}  // namespace graft::trainer
