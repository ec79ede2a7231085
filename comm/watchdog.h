// Judges whether this rank and the ranks of its node are alive: pure, with the time passed in, so
// that tests need no waiting. watchdog_thread.h runs it. Rules of reliability.md 4.1:
// - a phase past its deadline (heartbeat.h): the rank hangs, or waits for one that does;
// - a slot of the node's board that was not stamped for 20 s: that process is stopped or dead.
// Time in which this process itself did not run (the whole job was frozen: SIGSTOP, a debugger, a
// suspended allocation) counts for neither.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "comm/flight_recorder.h"
#include "comm/heartbeat.h"
#include "comm/node_board.h"

namespace graft::comm {

// Who this rank is, for messages.
struct WatchdogIdentity {
  int rank = 0;
  int size = 1;
  std::string host;
};

struct WatchdogFinding {
  enum Kind {
    kLate,    // this rank's phase is past its deadline
    kSilent,  // a process of the node does not run
    kAlarm,   // another rank of the node has raised the alarm
  };
  Kind kind = kLate;
  int rank = -1;     // the one that is blamed; -1 = unknown
  std::string text;  // what, where, how long
};

class Watchdog {
 public:
  static constexpr double kSilentSeconds = 20;

  // All must outlive the watchdog. `slot` = this rank's place on the board; no board: null.
  Watchdog(WatchdogIdentity identity, const Heartbeat& heartbeat, const FlightRecorder& recorder,
           std::shared_ptr<NodeBoard> board, int slot);

  // Stamps this rank's slot; the others watch it from now on.
  void Stamp(int64_t now_ns);
  // Call about four times a second. Stamps, then looks around.
  std::optional<WatchdogFinding> Tick(int64_t now_ns);
  // This rank leaves in good order: nobody shall miss it.
  void Leave();
  // Its flight recorder is written.
  void NoteDumped();
  // All watched ranks of the node have written theirs, or are the one that is blamed.
  bool AllDumped(int except_rank) const;
  // True for the first rank of the node.
  bool RaiseAlarm();

  // "rank 1, phase step, step 12: waits 3.0 s in AllReduce 40 of world".
  std::string DescribeSelf(int64_t now_ns) const;

 private:
  std::optional<WatchdogFinding> FindSilent(int64_t now_ns) const;
  WatchdogFinding Late(int64_t now_ns) const;
  // The rank of the node that keeps the others waiting, as far as the board shows it.
  int WhoKeepsOthersWaiting() const;
  void NoteOwnPause(int64_t now_ns);

  const WatchdogIdentity identity_;
  const Heartbeat& heartbeat_;
  const FlightRecorder& recorder_;
  const std::shared_ptr<NodeBoard> board_;
  const int slot_;
  int64_t last_tick_ns_ = 0;
  int64_t awake_since_ns_ = 0;  // the others' silence counts from here on
  int64_t paused_ns_ = 0;       // own pauses within the phase that began at paused_phase_ns_
  int64_t paused_phase_ns_ = 0;
};

}  // namespace graft::comm
