#include "trainer/coordinator/item_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::trainer {

ItemTable::ItemTable(const std::vector<double>& costs, int64_t first_epoch, const LeaseRules& rules)
    : rules_(rules), items_(costs.size()), next_epoch_(first_epoch) {
  for (int item = 0; item < size(); ++item) {
    At(item).cost = costs[static_cast<size_t>(item)];
    todo_.insert(Key(item));
    open_cost_ += At(item).cost;
  }
}

void ItemTable::SetState(int item, ItemState next) {
  Item& entry = At(item);
  const auto settled = [](ItemState s) {
    return s == ItemState::kDone || s == ItemState::kQuarantined;
  };
  if (entry.state == ItemState::kTodo) todo_.erase(Key(item));
  if (next == ItemState::kTodo) todo_.insert(Key(item));
  num_done_ += (next == ItemState::kDone) - (entry.state == ItemState::kDone);
  num_quarantined_ += (next == ItemState::kQuarantined) - (entry.state == ItemState::kQuarantined);
  if (settled(next) != settled(entry.state)) open_cost_ += settled(next) ? -entry.cost : entry.cost;
  entry.state = next;
}

std::optional<int> ItemTable::Next(double cost_limit, int worker, bool only_worker) const {
  const auto fits = [&](const std::pair<double, int>& key) {
    return MayTry(key.second, worker, only_worker);
  };
  const auto within = todo_.lower_bound({-cost_limit, -1});
  const auto costliest = std::find_if(within, todo_.end(), fits);
  if (costliest != todo_.end()) return costliest->second;
  const auto cheapest = std::find_if(std::make_reverse_iterator(within), todo_.rend(), fits);
  if (cheapest != todo_.rend()) return cheapest->second;
  return std::nullopt;
}

bool ItemTable::MayTry(int item, int worker, bool only_worker) const {
  const std::set<int>& failed = failures(item).workers;
  return only_worker || failed.size() >= 2 || failed.count(worker) == 0;
}

const Lease& ItemTable::Grant(int item, int worker, double now, double expected, double queued) {
  Item& entry = At(item);
  GRAFT_CHECK(entry.state == ItemState::kTodo ||
                  (entry.state == ItemState::kLeased && entry.num_leases == 1),
              absl::StrCat("item ", item, " cannot be leased"));
  const double duration =
      expected > 0 ? std::max(rules_.least_seconds, rules_.expected_factor * (expected + queued))
                   : rules_.unknown_seconds;
  Lease lease;
  lease.epoch = next_epoch_++;
  lease.item = item;
  lease.worker = worker;
  lease.granted = now;
  lease.deadline = now + duration;
  SetState(item, ItemState::kLeased);
  ++entry.num_leases;
  return leases_.emplace(lease.epoch, lease).first->second;
}

const Lease* ItemTable::FindLease(int64_t epoch) const {
  const auto found = leases_.find(epoch);
  return found == leases_.end() ? nullptr : &found->second;
}

std::vector<const Lease*> ItemTable::Leases() const {
  std::vector<const Lease*> all;
  for (const auto& [epoch, lease] : leases_) all.push_back(&lease);
  return all;
}

std::vector<const Lease*> ItemTable::LeasesOf(int worker) const {
  std::vector<const Lease*> mine;
  for (const auto& [epoch, lease] : leases_) {
    if (lease.worker == worker) mine.push_back(&lease);
  }
  return mine;
}

void ItemTable::Begin(int64_t epoch, double now) {
  Lease& lease = leases_.at(epoch);
  if (lease.begun) return;
  lease.begun = true;
  lease.begun_at = now;
}

void ItemTable::Renew(int64_t epoch, double now, double interval) {
  Lease& lease = leases_.at(epoch);
  const double renewal = std::max(rules_.renewal_seconds, interval);
  lease.deadline = std::max(lease.deadline, now + rules_.missed_renewals * renewal);
}

void ItemTable::Release(int64_t epoch) {
  const auto found = leases_.find(epoch);
  GRAFT_CHECK(found != leases_.end(), absl::StrCat("no lease ", epoch));
  const int item = found->second.item;
  leases_.erase(found);
  if (--At(item).num_leases == 0) SetState(item, ItemState::kTodo);
}

void ItemTable::EraseLeases(int item) {
  for (auto lease = leases_.begin(); lease != leases_.end();) {
    lease = lease->second.item == item ? leases_.erase(lease) : std::next(lease);
  }
  At(item).num_leases = 0;
}

void ItemTable::Finish(int item) {
  GRAFT_CHECK(state(item) != ItemState::kDone, absl::StrCat("item ", item, " is done"));
  EraseLeases(item);
  SetState(item, ItemState::kDone);
}

bool ItemTable::CountFailure(int item, int worker, bool numeric, bool only_worker,
                             const std::string& reason) {
  if (state(item) == ItemState::kDone || state(item) == ItemState::kQuarantined) return false;
  Failures& failed = At(item).failures;
  ++failed.count;
  failed.numeric = failed.numeric || numeric;
  failed.reason = reason;
  failed.workers.insert(worker);
  const bool elsewhere = failed.workers.size() >= 2 || only_worker;
  if (failed.count < rules_.most_failures || !elsewhere) return false;
  EraseLeases(item);
  SetState(item, ItemState::kQuarantined);
  return true;
}

std::vector<Lease> ItemTable::Expired(double now) const {
  std::vector<Lease> expired;
  for (const auto& [epoch, lease] : leases_) {
    if (now > lease.deadline) expired.push_back(lease);
  }
  return expired;
}

std::vector<int> ItemTable::Quarantined() const {
  std::vector<int> list;
  for (int item = 0; item < size(); ++item) {
    if (state(item) == ItemState::kQuarantined) list.push_back(item);
  }
  return list;
}

std::string ItemTable::CheckInvariants() const {
  std::vector<int> leases(items_.size(), 0);
  std::set<std::pair<int, int>> holders;
  for (const auto& [epoch, lease] : leases_) {
    ++leases[static_cast<size_t>(lease.item)];
    if (!holders.insert({lease.item, lease.worker}).second) {
      return absl::StrCat("item ", lease.item, " is leased twice to worker ", lease.worker);
    }
    if (epoch != lease.epoch || epoch >= next_epoch_) return absl::StrCat("epoch ", epoch);
  }
  int done = 0, quarantined = 0;
  for (int item = 0; item < size(); ++item) {
    const Item& entry = items_[static_cast<size_t>(item)];
    const int count = leases[static_cast<size_t>(item)];
    const bool leased = entry.state == ItemState::kLeased;
    if (count != entry.num_leases || (count > 0) != leased || count > 2) {
      return absl::StrCat("item ", item, " has ", count, " leases");
    }
    if ((todo_.count(Key(item)) == 1) != (entry.state == ItemState::kTodo)) {
      return absl::StrCat("item ", item, " is lost");
    }
    done += entry.state == ItemState::kDone;
    quarantined += entry.state == ItemState::kQuarantined;
  }
  return done == num_done_ && quarantined == num_quarantined_ ? "" : "counts differ";
}

}  // namespace graft::trainer
