// NCCL as the transport for GPU buffers. Always there: a build without NCCL returns an error that
// says so.
//
// Buffers lie on the communicator's device; an operation starts after all work that the device's
// default stream has been given so far, and its result may be used by any stream once the call (or
// Wait) returned. Communicators are non-blocking and polled, so every wait has a deadline; past it
// the NCCL communicator is aborted, which also stops its kernels.
//
// Departures from communicator.h: reductions follow NCCL's algorithm, not rank order (bitwise
// repeatable on one layout when NCCL_ALGO, NCCL_PROTO and the channel count are pinned); receives
// from a rank must be started in the order of that rank's sends, whatever their tags. The first
// transfer of each direction between two ranks connects them: both must start it without waiting
// for anything else, before work that other ranks wait for.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "comm/communicator.h"

namespace graft::comm {

// When a receive is handed to the device (comm/transfer_queue.h, which says why).
enum class NcclTransfers {
  kTogether,   // as it is started: for ranks that start the same transfers at the same time
  kAnnounced,  // when its send has been, with tag and size compared: for the stages of a pipeline
};

// All ranks of `host` (local or mpi) must call; rank and size are those of `host`, which carries
// the unique ids, announcements, barriers and splits. `device`: index of this rank's GPU. Errors:
// kind recipe when NCCL is not built in or the device is not there, kind peer when the ranks do not
// connect.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> host, int device, NcclTransfers transfers);

}  // namespace graft::comm
