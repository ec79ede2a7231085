// One direction between two ranks, as a NCCL communicator of two with its own stream. A NCCL
// communicator runs its operations one after the other, so a receive posted ahead would hold up
// every later send; apart, they cannot. Internal to comm/.
#pragma once

#include <deque>
#include <memory>

#include "comm/communicator.h"
#include "comm/nccl_handle.h"

namespace graft::comm {

// A send or receive that was started; issued to NCCL when its turn has come.
struct NcclTransfer {
  Buffer data;
  bool issued = false;
  CudaEvent ready;  // what the default stream had to do before
  CudaEvent done;   // recorded when issued
  bool IsDone() const { return issued && done.IsDone(); }
};

class NcclChannel {
 public:
  // Connects in the background of Progress: the sender makes the id and hands it over through
  // `host`.
  NcclChannel(Communicator& host, int peer, bool is_sender);
  void Add(std::shared_ptr<NcclTransfer> transfer) { waiting_.push_back(std::move(transfer)); }
  // One non-blocking step of connecting and issuing. Throws kind peer when the channel failed.
  void Progress();
  void Abort();

 private:
  void Issue(NcclTransfer* transfer);

  const bool is_sender_;
  ncclUniqueId id_;
  std::unique_ptr<Request> id_request_;
  std::unique_ptr<NcclHandle> handle_;
  std::shared_ptr<NcclTransfer> in_call_;  // given to NCCL, which has not taken it yet
  std::deque<std::shared_ptr<NcclTransfer>> waiting_;
};

}  // namespace graft::comm
