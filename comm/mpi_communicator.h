// MPI as the transport: point-to-point messages and the life of MPI itself. The collectives are
// those of host_communicator.h, so their sums keep rank order. Nothing here blocks inside MPI:
// every wait polls with a deadline. Used by world.cc only; embedding programs use mpi_embed.h.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "comm/communicator.h"

namespace graft::comm {

// Initialises MPI (MPI_THREAD_SERIALIZED) and returns all its ranks. Call once, from the main
// thread. Errors: kind peer.
absl::StatusOr<std::unique_ptr<Communicator>> InitialiseMpi();
// MPI_Finalize; blocks until all ranks call it.
void FinaliseMpi();

}  // namespace graft::comm
