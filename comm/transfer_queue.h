// The transfers of one direction between two ranks of a device group (nccl), in order, and the rule
// of when each is handed to the device. Knows neither NCCL nor CUDA, so that the rule is tested
// where there is no GPU. Internal to comm/.
//
// A receive on a GPU is a kernel that runs until its data come. While it runs, a call that waits
// for the whole device stops the host, and with it everything else the host should start: a lazy
// load of a kernel, an allocation. Two ranks then wait for each other for ever. Hence the rule:
// nothing is handed to the device that waits for the other HOST. The sender says through host
// memory that it has handed over the send, and only then is the receive handed over; a send is
// handed over when it is started. docs/design.md, "The device path".
//
// The first transfer connects the channel, which both sides must be in at the same time: it is
// handed over at once on both. Ranks connect all channels before the first step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>

#include "comm/communicator.h"

namespace graft::comm {

struct QueuedTransfer {
  virtual ~QueuedTransfer() = default;
  Buffer data;
  int tag = 0;
  bool handed_over = false;
};

// What a queue hands its transfers to. Both calls may throw kind peer.
class TransferWire {
 public:
  virtual ~TransferWire() = default;
  // False while the last call is not taken yet, or the two ranks are not connected.
  virtual bool IsReady() = 0;
  virtual void Call(QueuedTransfer& transfer) = 0;
  // The call of `transfer` was taken.
  virtual void NoteTaken(QueuedTransfer& transfer) = 0;
};

class TransferQueue {
 public:
  // `host`: carries what the sender says; both must outlive the queue. `announces`: the rule above;
  // else receives are handed over as they are started, which suits ranks that start the same
  // transfers at the same time. Equal on both sides.
  TransferQueue(Communicator& host, int peer, bool is_sender, bool announces, TransferWire& wire)
      : host_(host), peer_(peer), is_sender_(is_sender), announces_(announces), wire_(wire) {}

  void Add(std::shared_ptr<QueuedTransfer> transfer) { waiting_.push_back(std::move(transfer)); }
  // Hands over what may be. Throws kind bug when the sender's next transfer is another than the
  // receiver's: tag or size.
  void Progress();
  // All that needs nothing of the other host is handed over: the caller may go on to work that
  // stops the host.
  bool Settled() const;

 private:
  // What the sender says of a transfer, as it travels.
  struct Announcement {
    uint64_t number = 0;
    uint64_t bytes = 0;
    int64_t tag = 0;
  };
  struct Saying {
    Announcement said;
    std::unique_ptr<Request> request;
  };
  Announcement Of(const QueuedTransfer& transfer, uint64_t number) const;
  void Say(const QueuedTransfer& transfer);
  bool MayHandOver(const QueuedTransfer& transfer);

  Communicator& host_;
  const int peer_;
  const bool is_sender_, announces_;
  TransferWire& wire_;
  uint64_t handed_over_ = 0;                 // so far
  std::shared_ptr<QueuedTransfer> in_call_;  // given to the wire, which has not taken it yet
  std::deque<std::shared_ptr<QueuedTransfer>> waiting_;
  std::deque<std::unique_ptr<Saying>> sayings_;  // sender: under way; receiver: the next one
};

}  // namespace graft::comm
