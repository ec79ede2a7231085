// NCCL as the transport for GPU buffers. Always there: a build without NCCL returns an error that
// says so.
//
// Buffers lie on the communicator's device; an operation starts after all work that the device's
// default stream has been given so far, and its result may be used by any stream once the call (or
// Wait) returned. Communicators are non-blocking and polled, so every wait has a deadline; past it
// the NCCL communicator is aborted, which also stops its kernels.
//
// Departures from communicator.h: reductions follow NCCL's algorithm, not rank order (bitwise
// repeatable on one layout when NCCL_ALGO, NCCL_PROTO and the channel count are pinned); messages
// carry no tags: receives from a rank must be started in the order of that rank's sends, and sizes
// are not compared.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "comm/communicator.h"

namespace graft::comm {

// All ranks of `host` (local or mpi) must call; rank and size are those of `host`, which carries
// the unique ids, barriers and splits. `device`: index of this rank's GPU. Errors: kind recipe when
// NCCL is not built in or the device is not there, kind peer when the ranks do not connect.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> host, int device);

}  // namespace graft::comm
