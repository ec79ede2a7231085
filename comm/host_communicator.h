// The collectives of the host backends (local, mpi), written once over their point-to-point
// messages: reductions in rank order, waiting with a deadline that can name the missing rank, the
// same algorithm under threads and under MPI. Buffers are host memory.
//
// AllReduce: small buffers are exchanged directly and added by everybody; large ones go block by
// block through a reduce-scatter (each rank owns a slice of the block, receives it from all ranks
// and adds in rank order) and an all-gather, with the exchange of the next block under way. Both
// give the same bits.
//
// Every collective has tags of its own. A rank that has waited a second looks for messages of
// another collective from the ranks that it waits for: a wrong order is a bug error on both sides
// that names both operations, not a hang.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/wait.h"

namespace graft::comm {

class HostCommunicator;

// A message under way; backends implement Test and the clean-up in their destructor.
class HostRequest : public Request {
 public:
  HostRequest(HostCommunicator* comm, const char* operation, int peer)
      : comm_(comm), operation_(operation), peer_(peer) {}
  void Wait() final;
  const char* operation() const { return operation_; }
  int peer() const { return peer_; }

 protected:
  HostCommunicator* const comm_;

 private:
  const char* const operation_;
  const int peer_;
};

class HostCommunicator : public Communicator {
 public:
  const std::string& name() const final { return name_; }
  void AllReduce(Buffer inout, ReduceOp op) final;
  void Broadcast(Buffer inout, int root) final;
  void AllGather(Buffer in, Buffer out) final;
  void Barrier() final;
  // Tags: 0 .. 30,000.
  std::unique_ptr<Request> StartSend(Buffer data, int to, int tag) final;
  std::unique_ptr<Request> StartRecv(Buffer data, int from, int tag) final;

 protected:
  friend class HostRequest;
  using Requests = std::vector<std::unique_ptr<HostRequest>>;
  // The collectives use the tags -kReservedTags .. -1.
  static constexpr int kReservedTags = 8;
  static constexpr int kMaxTag = 30000;

  explicit HostCommunicator(std::string name) : name_(std::move(name)) {}
  virtual std::unique_ptr<HostRequest> PostSend(const void* data, std::size_t bytes, int to,
                                                int tag) = 0;
  virtual std::unique_ptr<HostRequest> PostRecv(void* data, std::size_t bytes, int from,
                                                int tag) = 0;
  // Whether a message with this tag has come that no receive has asked for.
  virtual bool HasUnclaimed(int from, int tag) = 0;

 private:
  struct Block;
  void CheckBuffer(const char* operation, const Buffer& buffer) const;
  void CheckPeer(const char* operation, int peer) const;
  // Until all are done; done ones become null. Throws kind peer past the waiter's limit, kind bug
  // when a rank that it waits for is in another collective.
  void WaitAll(const char* operation, Waiter* waiter, Requests* requests);
  void WaitOne(HostRequest* request);
  // "rank 1 is in Barrier" for the first of `peers` that has sent a message of another collective;
  // empty: none.
  std::string OtherCollective(const char* operation, const std::vector<int>& peers);
  // Every other rank's copy of `bytes` bytes into `scratch` (rank r at r * bytes), mine from `data`
  // to all.
  void ExchangeAll(const char* operation, int tag, const void* data, std::size_t bytes,
                   char* scratch);
  void DirectAllReduce(Buffer inout, ReduceOp op);
  void BlockedAllReduce(Buffer inout, ReduceOp op);
  void StartExchange(const Buffer& buffer, Block* block);
  void ReduceAndStartGather(const Buffer& buffer, ReduceOp op, Block* block);
  char* Scratch(std::size_t bytes);

  const std::string name_;
  std::unique_ptr<char[]> scratch_;
  std::size_t scratch_bytes_ = 0;
};

}  // namespace graft::comm
