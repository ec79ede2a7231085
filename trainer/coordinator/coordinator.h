// Gives work items to workers that ask for them, until every item has a result that is kept
// (reliability.md 5). A plain machine with injected clock, transport and log: it runs on rank 0's
// main thread beside that rank's own work, and on a virtual clock in tests. It holds no tensors and
// looks into no result. No LibTorch, no MPI.
//
// An item is TODO, LEASED (to one worker, at the tail to two), DONE or QUARANTINED. Faults cost
// time, never a byte: results are pure functions of their items, the first one is kept, and a later
// one must equal it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "trainer/coordinator/item_table.h"
#include "trainer/coordinator/journal.h"
#include "trainer/coordinator/transport.h"
#include "trainer/coordinator/work_item.h"

namespace graft::trainer {

struct CoordinatorOptions {
  LeaseRules leases;
  double sync_seconds = 0.1;  // results wait so long for their fsync; longer on a slow disk
  double resend_seconds = 2;  // a grant that its worker does not report by then is sent again
  // Without a sign of work for so long, and for three times the interval of its signs, a replica
  // is not alive.
  double silent_seconds = 60;
};

// For the progress line.
struct ItemProgress {
  int64_t items = 0;
  int64_t done = 0;
  int64_t from_journal = 0;  // of those
  int64_t quarantined = 0;
  int64_t repeated = 0;  // results that were there already: extra work
  int64_t replicas_alive = 0;
  double eta_seconds = -1;  // -1 = not known yet
};

class Coordinator {
 public:
  // What `log` holds of the items is done. `transport` and `log` must outlive the coordinator.
  Coordinator(std::vector<WorkItem> items, const std::string& run_key, CoordinatorOptions options,
              SecondsClock clock, Transport* transport, ResultLog* log);

  // Reads what has arrived and answers; takes back leases that ran out; syncs the log when due.
  void Poll();
  // No more grants; workers end what they have begun.
  void RequestStop() { stop_requested_ = true; }

  // Nothing more will be granted, and all that arrived is kept. Until they say goodbye workers may
  // still bring results: go on polling.
  bool finished() const { return ending_ && unacknowledged_.empty(); }
  int64_t num_goodbyes() const;
  // OK: every item has a result. Kind stopped, numeric, bug, io: see RunWorkItems. Only after
  // finished().
  absl::Status status() const;
  // In item order; empty where there is none.
  const std::vector<std::string>& results() const { return results_; }
  ItemProgress progress() const;
  const ItemTable& table() const { return table_; }

 private:
  struct Worker {
    int64_t start = -1;
    int64_t progress = -1;
    double last_moved = 0;  // of the clock: when work was seen
    double interval = -1;   // between the last two signs of it; -1 = there was none yet
    double done_cost = 0;   // decayed sums: the speed
    double done_seconds = 0;
    bool said_bye = false;
  };
  void Handle(const Message& message);
  void HandleReport(const Message& message, Worker& worker);
  void HandleResult(const Message& message, Worker& worker);
  void HandleFailure(const Message& message);
  // Renews what the worker holds, sends again what it does not know of; returns how many items it
  // is busy with.
  int CheckHeld(const Message& report, bool moved, bool new_start);
  bool GrantNext(int worker, bool idle);
  void GrantItem(int worker, int item);
  // Nothing is to do: takes an item over that waits, or repeats one that is late.
  bool GrantFromTail(int worker);
  bool TakingOverPays(const Lease& lease, int worker) const;
  bool RepeatingPays(const Lease& lease, int worker) const;
  void ExpireLeases();
  void SyncWhenDue();
  void EndWhenDone();
  void Fail(absl::Status failure);
  void Reply(Message::Kind kind, int worker, int item = -1, int64_t epoch = 0);
  void DropLeases(int item, int but_worker);
  void CountFailure(int item, int worker, bool numeric, const std::string& reason);
  bool IsAlive(int number) const;
  int64_t NumAlive() const;
  // Cost per second of a worker, or the mean when it has done nothing yet; 0 = not known.
  double SpeedOf(int worker) const;
  double TotalSpeed() const;                              // of those alive
  double ExpectedSeconds(int worker, double cost) const;  // 0 = not known
  double QueuedSeconds(int worker) const;                 // until it has done what it holds

  const std::vector<WorkItem> items_;
  std::vector<std::string> ids_;
  const CoordinatorOptions options_;
  const SecondsClock clock_;
  Transport* const transport_;
  ResultLog* const log_;
  ItemTable table_;
  std::vector<std::string> results_;
  std::vector<int> result_worker_;
  std::map<int, Worker> workers_;
  std::vector<Message> unacknowledged_;  // acks that wait for the next sync
  double oldest_unsynced_ = 0;
  double last_sync_seconds_ = 0;
  int64_t from_journal_ = 0, repeated_ = 0;
  bool stop_requested_ = false;
  bool ending_ = false;
  absl::Status failure_;  // of the run as a whole
};

}  // namespace graft::trainer
