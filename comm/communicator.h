// How ranks talk. One abstract class, three backends that pass one contract test: `local` (ranks are threads of one process,
// faults can be injected), `mpi` (Open MPI / MPICH), `nccl` (GPU buffers). No LibTorch here: buffers are plain memory.
//
// Every call blocks at most `timeout`; past it, or when a peer is lost, it throws StatusError of kind peer that names the
// communicator, the operation, the peer and the seconds. All ranks of the communicator must enter a collective, in the same order.
// Sums are taken in rank order, so a result is bitwise the same on every rank and in every run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"

namespace graft::comm {

enum class DType { kUint8, kInt32, kInt64, kFloat32, kFloat64, kBFloat16 };
std::size_t SizeOf(DType type);

// Contiguous memory of `count` elements; `device` -1 = host, else a CUDA device index.
struct Buffer {
  void* data = nullptr;
  std::size_t count = 0;
  DType type = DType::kFloat32;
  int device = -1;
  std::size_t bytes() const { return count * SizeOf(type); }
};

enum class ReduceOp { kSum, kMax, kMin };

class FlightRecorder;

// Where a communicator books its operations (flight_recorder.h); no recorder: nowhere.
struct FlightBook {
  FlightRecorder* recorder = nullptr;
  std::string name;  // the path of splits: "world/data:1"
  int group = -1;    // the recorder's number for it
  int64_t collectives = 0;
};

// A transfer under way. The buffer must live until Wait returns or the request is destroyed. Destroying an unfinished
// request cancels it or waits for it.
class Request {
 public:
  virtual ~Request() = default;
  virtual bool Test() = 0;   // true = done; also drives progress
  virtual void Wait() = 0;   // blocks at most the communicator's timeout
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const std::string& name() const = 0;
  virtual const char* backend() const = 0;  // "local", "mpi", "nccl"

  // Element-wise over all ranks, in place. kFloat32, kFloat64, kInt64 (NCCL also kBFloat16).
  virtual void AllReduce(Buffer inout, ReduceOp op) = 0;
  // AllReduce that may run beside what the caller does next. All ranks start the same ones and wait for them in the same
  // order, and enter no other collective of this communicator before the last is done. A GPU backend works on what the
  // default stream had been given by then; a host backend, which gets on only while it is called, does all of it in the
  // first Test or Wait, which then takes as long as an AllReduce.
  virtual std::unique_ptr<Request> StartAllReduce(Buffer inout, ReduceOp op);
  virtual void Broadcast(Buffer inout, int root) = 0;
  // out.count = size() * in.count, in rank order.
  virtual void AllGather(Buffer in, Buffer out) = 0;
  virtual void Barrier() = 0;

  // Point to point. Messages between two ranks with one tag arrive in order; sizes must match. Zero bytes are allowed.
  virtual std::unique_ptr<Request> StartSend(Buffer data, int to, int tag) = 0;
  virtual std::unique_ptr<Request> StartRecv(Buffer data, int from, int tag) = 0;
  void Send(Buffer data, int to, int tag) { StartSend(data, to, tag)->Wait(); }
  void Recv(Buffer data, int from, int tag) { StartRecv(data, from, tag)->Wait(); }

  // Ranks with one color form a new communicator, ordered by key then rank. Collective over this communicator.
  virtual std::unique_ptr<Communicator> Split(int color, int key, const std::string& name) = 0;

  // Ends the whole job now, from any thread; other ranks stop too. Does not return where the backend can kill the process.
  virtual void Abort(int exit_code) = 0;

  void set_timeout(absl::Duration timeout) { timeout_ = timeout; }
  absl::Duration timeout() const { return timeout_; }
  // Books the operations of this communicator, and of those that are split from it later, in
  // `recorder`, which must outlive them all.
  void OpenBook(FlightRecorder* recorder, const std::string& name);
  FlightBook& book() { return book_; }
  // Seconds this rank spent blocked in calls of this communicator so far.
  double blocked_seconds() const { return blocked_seconds_; }

 protected:
  // For Split: a part goes on as its parent does.
  void InheritFrom(const Communicator& parent, int color);
  double blocked_seconds_ = 0;

 private:
  absl::Duration timeout_ = absl::Minutes(15);
  FlightBook book_;
};

}  // namespace graft::comm
