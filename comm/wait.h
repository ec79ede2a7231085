// How a rank waits for its peers: spin for 200 us, then test and yield the core, then test every 50
// us, up to a limit. A rank that waits must not burn a core on which another rank computes, and
// must never block inside MPI or CUDA. Used by all backends.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "comm/communicator.h"

namespace graft::comm {

class Waiter {
 public:
  explicit Waiter(absl::Duration limit);
  // Call after a test that found nothing. False once the limit has passed.
  bool Pause();
  // Something arrived: spin again from now on. The limit keeps running.
  void NoteProgress();
  double waited_seconds() const;
  double idle_seconds() const;  // since something arrived

 private:
  using Clock = std::chrono::steady_clock;
  double limit_seconds_;
  Clock::time_point start_;
  Clock::time_point last_progress_;
};

// Adds the time of its scope to `total`.
class BlockedTimer {
 public:
  explicit BlockedTimer(double* total) : total_(total), start_(std::chrono::steady_clock::now()) {}
  ~BlockedTimer();
  BlockedTimer(const BlockedTimer&) = delete;
  BlockedTimer& operator=(const BlockedTimer&) = delete;

 private:
  double* total_;
  std::chrono::steady_clock::time_point start_;
};

// "communicator data (mpi, 4 ranks): AllReduce on rank 0: REASON".
std::string Describe(const Communicator& comm, const char* operation, const std::string& reason);
// Kind peer: names the ranks that did not answer, the seconds waited and the limit.
absl::Status TimeoutError(const Communicator& comm, const char* operation,
                          const std::vector<int>& peers, double seconds);

}  // namespace graft::comm
