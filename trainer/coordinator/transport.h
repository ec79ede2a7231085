// What the coordinator and its workers say to each other, and the way there. The machines on both
// sides (coordinator.h, worker_client.h) only know this, so that they run alike over MPI, inside
// one process and in a simulation that loses, doubles and reorders messages. No LibTorch, no MPI.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace graft::trainer {

// Seconds of a clock that never jumps; simulations bring their own.
using SecondsClock = std::function<double()>;
double MonotonicSeconds();

// A lease that a worker holds.
struct HeldItem {
  enum class State : uint8_t { kWaiting, kBegun, kComputed };  // kComputed: not acknowledged yet
  int64_t epoch = 0;
  State state = State::kWaiting;
  bool operator==(const HeldItem&) const = default;
};

struct Message {
  enum class Kind : uint8_t {
    // From a worker. kReport: what it holds and how far it is; asks for more and renews leases.
    kReport = 1,
    kResult,   // `bytes` of `item`
    kFailure,  // `item` gave no result; `bytes` says why
    kBye,      // after kFinish: the last message; the coordinator's last one answers it
    // From the coordinator.
    kGrant,   // a lease on `item`
    kDrop,    // the lease `epoch` is over: forget it unless it is begun
    kAck,     // the result of `epoch` is safe
    kAlive,   // nothing to give now
    kFinish,  // end what is begun, drop the rest
  };
  Kind kind = Kind::kReport;
  int32_t worker = 0;          // who sends, or whom it is for
  int32_t item = -1;           // place in the list
  int64_t epoch = 0;           // number of the lease; rises with every grant
  int64_t start = 0;           // kReport: the worker's start, higher after it came back
  int64_t progress = 0;        // kReport: rises with every micro-batch
  int32_t capacity = 0;        // kReport: how many leases it wants to hold
  bool stop = false;           // kReport: a stop was requested there
  bool numeric = false;        // kFailure: a number is not finite
  double seconds = 0;          // kResult: time that the item took
  std::vector<HeldItem> held;  // kReport
  std::string bytes;
  bool operator==(const Message&) const = default;
};

std::string EncodeMessage(const Message& message);
// Error kind bug when the bytes are not a message.
absl::StatusOr<Message> DecodeMessage(const std::string& bytes);

// One end. Neither call blocks.
class Transport {
 public:
  virtual ~Transport() = default;
  // At the coordinator: to message.worker; at a worker: to the coordinator.
  virtual void Send(const Message& message) = 0;
  virtual std::optional<Message> Receive() = 0;
};

// Two ends inside one process and thread: {the coordinator's, the worker's}.
std::pair<std::unique_ptr<Transport>, std::unique_ptr<Transport>> MakeLocalTransports();

}  // namespace graft::trainer
