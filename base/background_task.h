// One job at a time on a thread of its own, for work that must not hold up the main thread: the
// checkpoint writer. The job may not call MPI, NCCL or LibTorch's autograd; stop signals stay with
// the main thread. Not thread-safe itself: one thread starts and takes.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

#include "absl/status/status.h"

namespace graft {

class BackgroundTask {
 public:
  BackgroundTask() = default;
  ~BackgroundTask();  // waits for the job
  BackgroundTask(const BackgroundTask&) = delete;
  BackgroundTask& operator=(const BackgroundTask&) = delete;

  // Runs `job`, which owns or outlives all that it touches. The previous result must be taken.
  void Start(std::function<absl::Status()> job);
  // A job was started and its result is not taken yet.
  bool active() const { return thread_.joinable(); }
  // The job has returned; its result can be taken without waiting.
  bool finished() const { return finished_.load(std::memory_order_acquire); }
  // finished(), with an error.
  bool failed() const { return finished() && !result_.ok(); }
  // Waits for the job and returns its status; an exception in it is kind bug.
  absl::Status Take();

 private:
  std::thread thread_;
  std::atomic<bool> finished_{false};
  absl::Status result_;  // written by the job's thread before finished_
};

}  // namespace graft
