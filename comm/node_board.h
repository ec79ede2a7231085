// A board in shared memory on which the watchdogs of one node's ranks stamp that their process
// still runs, and say what it is doing (reliability.md 4.1). A rank that was stopped or died stamps
// no more, which no MPI tells the others. Atomics only; also the place where the rank that raises
// the alarm is agreed on, so that one rank speaks for the node.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace graft::comm {

// A rank's place. All processes of the node read it; its owner writes. All zero = nobody is here.
struct BoardSlot {
  enum State : int32_t { kEmpty = 0, kOn = 1, kDumped = 2, kLeft = 3 };
  std::atomic<int32_t> state{kEmpty};
  std::atomic<int32_t> rank{0};
  std::atomic<int32_t> pid{0};
  std::atomic<int32_t> phase{0};
  std::atomic<int64_t> stamp_ns{0};
  std::atomic<int64_t> step{0};
  std::atomic<int64_t> begun{0};    // operations
  std::atomic<int64_t> waiting{0};  // sequence of the operation it waits for; 0 = computes
};

class NodeBoard {
 public:
  // Zeroed memory of the process itself: for ranks that are threads, and for tests.
  static std::shared_ptr<NodeBoard> InMemory(int slots);
  // The shared memory object `name` ("graft-...", without a slash), made by whoever comes first.
  // Kind io.
  static absl::StatusOr<std::shared_ptr<NodeBoard>> Open(const std::string& name, int slots);
  // Takes the name away; those who have opened it keep it, nobody else finds it.
  static void Remove(const std::string& name);

  ~NodeBoard();
  NodeBoard(const NodeBoard&) = delete;
  NodeBoard& operator=(const NodeBoard&) = delete;

  int size() const { return size_; }
  BoardSlot& slot(int index) { return slots_[index]; }
  // True for the first caller on the node: it speaks. `rank` is remembered.
  bool RaiseAlarm(int rank);
  // The rank that raised it; -1 = nobody did.
  int alarm() const { return alarm_->load(std::memory_order_acquire) - 1; }

 private:
  NodeBoard(void* memory, std::size_t bytes, int slots, bool mapped);
  static std::size_t BytesFor(int slots);

  void* const memory_;
  const std::size_t bytes_;
  const int size_;
  const bool mapped_;
  std::atomic<int32_t>* const alarm_;
  BoardSlot* const slots_;
};

}  // namespace graft::comm
