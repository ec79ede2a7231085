// The last operations of a rank's communicators, kept in memory so that a hang can be explained
// afterwards (reliability.md 4.2). Communicators book what they begin and finish
// (Communicator::set_recorder); the watchdog thread reads while the main thread goes on or hangs:
// atomics only, no locks. Writing files is flight_dump.h, comparing ranks flight_report.h.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "comm/monotonic.h"

namespace graft::comm {

// One operation. Times in nanoseconds of the recorder's clock; 0 = not yet.
struct FlightEntry {
  int64_t sequence = 0;   // from 1, over all communicators of the rank
  int group = -1;         // index of the communicator; -1 = there were too many
  int64_t number = 0;     // from 1, of collectives of that communicator; 0 = point to point
  const char* op = "";    // a string literal: "AllReduce", "Send", ...
  const char* type = "";  // a string literal: "float32", ...
  int peer = -1;          // rank in the communicator: the other end, or the root; -1 = all
  int64_t bytes = 0;
  int64_t step = -1;         // -1 = outside of steps
  int64_t micro_batch = -1;  // of transfers between stages
  int64_t enqueued_ns = 0;   // handed to the communicator
  int64_t waited_ns = 0;     // the main thread began to wait for it
  int64_t finished_ns = 0;
};

// A communicator as the recorder knows it. `name` is the path of splits, with the color that chose
// this one: "world", "world/data:1".
struct FlightGroup {
  std::string name;
  int rank = 0;
  int size = 1;
};

class FlightRecorder {
 public:
  static constexpr int kEntries = 4096;
  static constexpr int kGroups = 64;

  explicit FlightRecorder(MonotonicClock clock = &MonotonicNanos) : clock_(clock) {}
  FlightRecorder(const FlightRecorder&) = delete;
  FlightRecorder& operator=(const FlightRecorder&) = delete;

  // One thread at a time: the rank's main thread, or the thread of a backward pass that it waits
  // for. The index for FlightEntry::group; -1 when all places are taken.
  int AddGroup(const std::string& name, int rank, int size);
  void set_step(int64_t step) { step_ = step; }
  void set_micro_batch(int64_t micro_batch) { micro_batch_ = micro_batch; }
  // Books op, type, group, number, peer and bytes of `entry`, fills in the rest; returns the
  // sequence.
  int64_t Begin(const FlightEntry& entry);
  // The rank waits for it from now on, until Finish; or until StopWaiting, where it goes on beside
  // it and is not done: waited_ns is then that of the next Wait.
  void Wait(int64_t sequence);
  void StopWaiting(int64_t sequence);
  void Finish(int64_t sequence);

  // Any thread.
  int64_t begun() const { return next_.load(std::memory_order_acquire) - 1; }
  // Sequence of the operation that the main thread waits for; 0 = it computes.
  int64_t waiting() const { return waiting_.load(std::memory_order_acquire); }
  // False when the entry is gone or just being replaced.
  bool Read(int64_t sequence, FlightEntry* entry) const;
  // What is still there, oldest first.
  std::vector<FlightEntry> Snapshot() const;
  std::vector<FlightGroup> Groups() const;
  int64_t Now() const { return clock_(); }

 private:
  // Every field is an atomic, written with release and read with acquire: a reader that sees the
  // same sequence before and after has read one entry.
  struct Slot {
    std::atomic<int64_t> sequence{0};  // 0 while it is replaced
    std::atomic<int> group{-1}, peer{-1};
    std::atomic<const char*> op{""}, type{""};
    std::atomic<int64_t> number{0}, bytes{0}, step{-1}, micro_batch{-1};
    std::atomic<int64_t> enqueued_ns{0}, waited_ns{0}, finished_ns{0};
  };
  struct GroupSlot {
    std::array<char, 64> name{};
    int rank = 0, size = 1;
  };
  Slot& SlotOf(int64_t sequence) { return slots_[static_cast<std::size_t>(sequence % kEntries)]; }

  const MonotonicClock clock_;
  int64_t step_ = -1, micro_batch_ = -1;
  std::atomic<int64_t> next_{1};
  std::atomic<int64_t> waiting_{0};
  std::array<Slot, kEntries> slots_;
  std::array<GroupSlot, kGroups> groups_;
  std::atomic<int> num_groups_{0};  // those below it do not change
};

}  // namespace graft::comm
