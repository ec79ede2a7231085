// A worker's side of the conversation with the coordinator: keeps items ahead, says how far it is,
// and delivers results until they are acknowledged. A plain machine with injected clock and
// transport; whoever computes calls it between micro-batches. One per replica, on its stage 0. No
// LibTorch, no MPI.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/coordinator/transport.h"

namespace graft::trainer {

struct WorkerOptions {
  int in_flight = 1;            // items that the replica can have begun at a time: its stages
  int ahead = 2;                // items held beside them
  double renewal_seconds = 10;  // LeaseRules::renewal_seconds
  double ask_seconds = 1;       // how often a worker without an item asks
  double resend_seconds = 20;   // a result that is not acknowledged is sent again
};

class WorkerClient {
 public:
  // `start` rises when the worker comes back after it was lost.
  WorkerClient(int worker, int64_t start, const WorkerOptions& options, SecondsClock clock,
               Transport* transport);

  // Reads what has arrived, then asks, renews and delivers what is due.
  void Poll();
  // The next item to compute, when one is held and fewer than `in_flight` are begun.
  struct Work {
    int item;
    int64_t epoch;
  };
  std::optional<Work> Begin();
  // After every micro-batch: the sign that renews the leases.
  void NoteProgress() { ++progress_; }
  // The end of what Begin gave; items of a pipeline end in the order of their beginnings.
  void Deliver(int64_t epoch, absl::StatusOr<std::string> result);
  // Asks every worker to stop, with the next report.
  void RequestStop() { stop_ = true; }

  // The coordinator has ended the run, nothing is left to deliver, goodbye was said by both.
  bool finished() const { return finished_; }
  // When the coordinator was heard last; the time of the construction before that.
  double last_heard() const { return last_heard_; }

 private:
  struct Item {
    int item;
    int64_t epoch;
    bool begun = false;
    double begun_at = 0;
    std::optional<Message> result;  // sent, not acknowledged
    double sent_at = 0;
  };
  void Handle(const Message& message);
  void Report();
  bool ReportIsDue() const;
  int CountBegun() const;
  static HeldItem::State StateOf(const Item& item);
  Item* Find(int64_t epoch);
  void DropWaiting();

  const int worker_;
  const int64_t start_;
  const WorkerOptions options_;
  const SecondsClock clock_;
  Transport* const transport_;
  std::vector<Item> items_;  // in the order of their grants
  std::set<int64_t> seen_;   // grants: a doubled one is not done twice
  int64_t progress_ = 0;
  int64_t reported_progress_ = -1;
  double reported_at_ = 0;
  double last_heard_;
  double last_delivered_ = 0;
  bool changed_ = true;  // since the last report
  bool stop_ = false;
  bool ending_ = false;
  bool said_bye_ = false;
  bool finished_ = false;
};

}  // namespace graft::trainer
