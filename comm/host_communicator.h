// The collectives of the host backends (local, mpi), written once over their point-to-point
// messages: reductions in rank order, waiting with a deadline that can name the missing rank, the
// same algorithm under threads and under MPI. Buffers are host memory.
//
// AllReduce: small buffers are exchanged directly and added by everybody; large ones go block by
// block through a reduce-scatter (each rank owns a slice of the block, receives it from all ranks
// and adds in rank order) and an all-gather, with the exchange of the next block under way. Both
// give the same bits.
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

 private:
  struct Block;
  void CheckBuffer(const char* operation, const Buffer& buffer) const;
  void CheckPeer(const char* operation, int peer) const;
  // Until all are done; done ones become null. Throws kind peer past the waiter's limit.
  void WaitAll(const char* operation, Waiter* waiter, Requests* requests);
  void WaitOne(HostRequest* request);
  // Every other rank's copy of `bytes` bytes into `scratch` (rank r at r * bytes), mine from `data`
  // to all.
  void ExchangeAll(const char* operation, const void* data, std::size_t bytes, char* scratch);
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
