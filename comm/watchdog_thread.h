// The thread that runs a rank's watchdog and ends the process when it finds something: every rank
// of the node writes its flight recorder, one of them prints the last line, all leave with exit
// code 76, by which the launcher ends the job (reliability.md 4.1). Never calls MPI, takes no lock
// that the main thread holds, and does not wait for a disk: a dump that takes too long is left.
// On USR2 it writes the flight recorder and goes on (base/signals.h).
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "comm/watchdog.h"

namespace graft::comm {

struct WatchdogActions {
  // Writes this rank's flight recorder; the reason goes into it. Runs on a thread of its own.
  std::function<void(const std::string& reason)> dump;
  // Writes the last line of the run.
  std::function<void(const absl::Status& status)> print;
  // Ends the process at once.
  std::function<void(int exit_code)> exit;
};

class WatchdogThread {
 public:
  WatchdogThread(std::unique_ptr<Watchdog> watchdog, WatchdogActions actions,
                 MonotonicClock clock = &MonotonicNanos);
  ~WatchdogThread();
  WatchdogThread(const WatchdogThread&) = delete;
  WatchdogThread& operator=(const WatchdogThread&) = delete;

  // Writes this rank's flight recorder; at most 3 s.
  void DumpSelf(const std::string& reason);
  // For a main thread that is about to end the job because of an error of its own: the ranks of the
  // node write their flight recorders, this one too. Returns after at most 3 s. No rank of the node
  // prints or exits for it before 5 s have passed.
  void DumpNode(const std::string& reason);

 private:
  void Run();
  void Respond(const WatchdogFinding& finding);
  // Runs `task` on a thread of its own and waits so long at most: neither a file system nor a
  // reader of stderr that hangs may keep this process.
  static void RunWithin(double seconds, std::function<void()> task);
  void WaitForOthers(double seconds, int except_rank);

  const std::unique_ptr<Watchdog> watchdog_;
  const WatchdogActions actions_;
  const MonotonicClock clock_;
  const int dumps_before_;  // requests that came before there was a thread
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace graft::comm
