// For programs that embed graft and bring their own MPI communicator. The only public header that
// includes mpi.h.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <memory>
#include <string>

#include "comm/communicator.h"

namespace graft::comm {

struct MpiOptions {
  std::string name = "world";
  // Longer messages travel in pieces of this many bytes (MPI counts are int); at most 2^31 - 1.
  std::size_t piece_bytes = std::size_t{1} << 30;
};

// Talks over a duplicate of `comm`, so that messages never meet those of the caller; the caller
// keeps `comm` and its error handler. MPI must be initialised with MPI_THREAD_FUNNELED or more and
// only the main thread may use the result (Abort: any thread); a trainer that shares frozen weights
// on GPUs needs MPI_THREAD_SERIALIZED. Destroy it before MPI_Finalize.
// Collective over `comm`; errors: kind peer.
std::unique_ptr<Communicator> AdoptMpi(MPI_Comm comm, const MpiOptions& options = {});

}  // namespace graft::comm
