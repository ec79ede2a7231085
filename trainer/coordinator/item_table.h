// The states of all items and the leases on them: which item comes next, when a lease runs out,
// when an item is given up (reliability.md 5). The part of the coordinator that knows no messages,
// no files and no speeds; times are the caller's. Every method keeps the invariants that
// CheckInvariants states.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace graft::trainer {

// Seconds. A lease holds for max(least, factor x expected); a sign of work makes it hold for at
// least missed_renewals x max(renewal, time since the sign before) more.
struct LeaseRules {
  double least_seconds = 60;
  double expected_factor = 3;
  double unknown_seconds = 600;  // no speed was measured yet
  double renewal_seconds = 10;   // how often a worker that gets on says so
  int missed_renewals = 3;
  // An item is given up after so many failures on at least two workers, or on the only one.
  int most_failures = 3;
};

enum class ItemState : uint8_t { kTodo, kLeased, kDone, kQuarantined };

struct Lease {
  int64_t epoch = 0;
  int item = -1;
  int worker = -1;
  double granted = 0;  // times
  double deadline = 0;
  bool begun = false;
  double begun_at = 0;
};

class ItemTable {
 public:
  // Epochs count up from `first_epoch`, which must be above those of every earlier coordinator.
  ItemTable(const std::vector<double>& costs, int64_t first_epoch, const LeaseRules& rules);

  int size() const { return static_cast<int>(items_.size()); }
  ItemState state(int item) const { return items_[static_cast<size_t>(item)].state; }
  int num_todo() const { return static_cast<int>(todo_.size()); }
  int num_done() const { return num_done_; }
  int num_quarantined() const { return num_quarantined_; }
  bool all_settled() const { return num_done_ + num_quarantined_ == size(); }
  double open_cost() const { return open_cost_; }  // of items that are neither

  // The costliest item to do with cost <= limit, else the cheapest one to do, of those that
  // MayTry(worker). None when there is none.
  std::optional<int> Next(double cost_limit, int worker, bool only_worker) const;
  // An item that failed on `worker` is first tried on another one, when there is one.
  bool MayTry(int item, int worker, bool only_worker) const;
  // Leases `item` (to do, or leased to one other worker) for `expected` seconds of work (0 =
  // not known) that begin after `queued` seconds.
  const Lease& Grant(int item, int worker, double now, double expected, double queued);
  const Lease* FindLease(int64_t epoch) const;
  // In order of their grants.
  std::vector<const Lease*> Leases() const;
  std::vector<const Lease*> LeasesOf(int worker) const;
  int CountLeases(int item) const { return items_[static_cast<size_t>(item)].num_leases; }

  void Begin(int64_t epoch, double now);
  // `interval`: since the worker's sign of work before this one.
  void Renew(int64_t epoch, double now, double interval);
  // Ends one lease; without another one the item is to do again.
  void Release(int64_t epoch);
  // Of any state but done.
  void Finish(int item);
  // Books a failure of `item` on `worker`, and gives the item up when the rule says so.
  // `only_worker`: no other one is alive. True = given up now.
  bool CountFailure(int item, int worker, bool numeric, bool only_worker,
                    const std::string& reason);
  // Leases whose deadline has passed.
  std::vector<Lease> Expired(double now) const;

  struct Failures {
    int count = 0;
    bool numeric = false;  // one of them
    std::string reason;    // the last
    std::set<int> workers;
  };
  const Failures& failures(int item) const { return items_[static_cast<size_t>(item)].failures; }
  // Quarantined items, rising.
  std::vector<int> Quarantined() const;
  // Empty, or what is wrong: for tests, at every event.
  std::string CheckInvariants() const;

 private:
  struct Item {
    double cost = 0;
    ItemState state = ItemState::kTodo;
    int num_leases = 0;
    Failures failures;
  };
  Item& At(int item) { return items_[static_cast<size_t>(item)]; }
  std::pair<double, int> Key(int item) const {
    return {-items_[static_cast<size_t>(item)].cost, item};
  }
  void SetState(int item, ItemState state);
  void EraseLeases(int item);

  const LeaseRules rules_;
  std::vector<Item> items_;
  std::set<std::pair<double, int>> todo_;  // costliest first, then in list order
  std::map<int64_t, Lease> leases_;        // by epoch
  int64_t next_epoch_;
  int num_done_ = 0, num_quarantined_ = 0;
  double open_cost_ = 0;
};

}  // namespace graft::trainer
