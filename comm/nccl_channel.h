// One direction between two ranks, as a NCCL communicator of two with its own stream. A NCCL
// communicator runs its operations one after the other, so a receive posted ahead would hold up
// every later send; apart, they cannot. Internal to comm/.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "comm/nccl_handle.h"
#include "comm/transfer_queue.h"

namespace graft::comm {

// A send or receive that was started; handed to NCCL when its turn has come.
struct NcclTransfer : QueuedTransfer {
  CudaEvent ready;  // what the default stream had to do before
  CudaEvent done;   // recorded when handed over
  bool IsDone() const { return handed_over && done.IsDone(); }
};

class NcclChannel : private TransferWire {
 public:
  // Connects in the background of Progress: the sender makes the id and hands it over through
  // `host`. `announces`: transfer_queue.h.
  NcclChannel(Communicator& host, int peer, bool is_sender, bool announces);
  void Add(std::shared_ptr<NcclTransfer> transfer) { queue_.Add(std::move(transfer)); }
  // One non-blocking step of connecting and handing over. Throws kind peer when the channel failed.
  void Progress() { queue_.Progress(); }
  bool Settled() const { return queue_.Settled(); }
  void Abort();

 private:
  bool IsReady() override;
  void Call(QueuedTransfer& transfer) override;
  void NoteTaken(QueuedTransfer& transfer) override;

  const bool is_sender_;
  ncclUniqueId id_;
  std::unique_ptr<Request> id_request_;
  std::unique_ptr<NcclHandle> handle_;
  TransferQueue queue_;
};

}  // namespace graft::comm
