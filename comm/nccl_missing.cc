// Stands in for nccl_communicator.cc in builds without NCCL.
#include "base/status.h"
#include "comm/nccl_communicator.h"
#include "comm/world.h"

namespace graft::comm {

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(std::unique_ptr<Communicator>,
                                                                   int, NcclTransfers) {
  return RecipeError(
      "parallel.backend: nccl is not built into this graft (no nccl.h or libnccl at configure "
      "time); "
      "allowed here: mpi");
}

const char* NcclVersion() { return "not built in"; }
const char* CudaVersion() { return "not built in"; }

}  // namespace graft::comm
