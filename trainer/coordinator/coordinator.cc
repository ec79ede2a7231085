#include "trainer/coordinator/coordinator.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/hash.h"
#include "base/logging.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::trainer {
namespace {

// A measured speed forgets: each new item weighs as much as the four before it.
constexpr double kDecay = 0.8;
// A lease that runs for so many times what was expected is late.
constexpr double kLate = 1.5;
constexpr int kMostCapacity = 64;
// A slow disk may take this part of rank 0's time: results then wait longer for their fsync.
constexpr double kSyncShare = 0.01;

// Starts are numbered, and so are the grants of one start: epochs rise over restarts.
int64_t FirstEpoch(int64_t start) { return start << 32; }

std::vector<double> Costs(const std::vector<WorkItem>& items) {
  std::vector<double> costs;
  for (const WorkItem& item : items) costs.push_back(item.cost);
  return costs;
}

std::string ShortHash(const std::string& bytes) { return Sha256Hex(bytes).substr(0, 16); }

}  // namespace

Coordinator::Coordinator(std::vector<WorkItem> items, const std::string& run_key,
                         CoordinatorOptions options, SecondsClock clock, Transport* transport,
                         ResultLog* log)
    : items_(std::move(items)),
      options_(options),
      clock_(std::move(clock)),
      transport_(transport),
      log_(log),
      table_(Costs(items_), FirstEpoch(log->start()), options.leases),
      results_(items_.size()),
      result_worker_(items_.size(), -1) {
  for (size_t i = 0; i < items_.size(); ++i) {
    ids_.push_back(ItemId(run_key, items_[i]));
    const std::string* const kept = log_->Find(ids_[i], &result_worker_[i]);
    if (kept == nullptr) continue;
    results_[i] = *kept;
    table_.Finish(static_cast<int>(i));
    ++from_journal_;
  }
}

void Coordinator::Poll() {
  while (std::optional<Message> message = transport_->Receive()) Handle(*message);
  ExpireLeases();
  SyncWhenDue();
  EndWhenDone();
}

void Coordinator::Handle(const Message& message) {
  using Kind = Message::Kind;
  Worker& worker = workers_[message.worker];
  switch (message.kind) {
    case Kind::kReport:
      return HandleReport(message, worker);
    case Kind::kResult:
      return HandleResult(message, worker);
    case Kind::kFailure:
      return HandleFailure(message);
    case Kind::kBye:
      worker.said_bye = true;
      return Reply(Kind::kBye, message.worker);
    default:
      GRAFT_CHECK(false, absl::StrCat("worker ", message.worker, " sent a message of kind ",
                                      static_cast<int>(message.kind)));
  }
}

void Coordinator::HandleReport(const Message& message, Worker& worker) {
  if (message.start < worker.start) return;  // from before it came back
  const bool new_start = message.start > worker.start;
  const bool moved = new_start || message.progress > worker.progress;
  worker.start = message.start;
  if (moved) worker.progress = message.progress;
  if (moved && !new_start) worker.interval = clock_() - worker.last_moved;
  // One that waits for work cannot show any.
  if (moved || message.held.empty()) worker.last_moved = clock_();
  stop_requested_ = stop_requested_ || message.stop;
  int busy = CheckHeld(message, moved, new_start);
  if (stop_requested_ || ending_) {
    EndWhenDone();
    return Reply(Message::Kind::kFinish, message.worker);
  }
  bool granted = false;
  const int capacity = std::min(message.capacity, kMostCapacity);
  while (busy < capacity && GrantNext(message.worker, busy == 0)) {
    granted = true;
    ++busy;
  }
  if (!granted) Reply(Message::Kind::kAlive, message.worker);
}

int Coordinator::CheckHeld(const Message& report, bool moved, bool new_start) {
  const double now = clock_();
  int busy = 0;
  std::vector<int64_t> known;
  for (const HeldItem& held : report.held) {
    const Lease* const lease = table_.FindLease(held.epoch);
    const bool computed = held.state == HeldItem::State::kComputed;
    if (lease == nullptr || lease->worker != report.worker) {
      if (!computed) Reply(Message::Kind::kDrop, report.worker, -1, held.epoch);
      busy += held.state == HeldItem::State::kBegun;
      continue;
    }
    known.push_back(held.epoch);
    busy += !computed;
    if (held.state != HeldItem::State::kWaiting) table_.Begin(held.epoch, now);
    if (moved || computed) table_.Renew(held.epoch, now, workers_.at(report.worker).interval);
  }
  for (const Lease* lease : table_.LeasesOf(report.worker)) {
    if (std::find(known.begin(), known.end(), lease->epoch) != known.end()) continue;
    ++busy;
    const bool lost = new_start || now - lease->granted > options_.resend_seconds;
    if (lost) Reply(Message::Kind::kGrant, report.worker, lease->item, lease->epoch);
  }
  return busy;
}

bool Coordinator::GrantNext(int worker, bool idle) {
  double limit = std::numeric_limits<double>::infinity();
  const double speed = SpeedOf(worker), total = TotalSpeed();
  if (speed > 0 && total > 0) {
    // All end together if nobody takes an item that lasts longer than what is left of the run.
    const double left = table_.open_cost() / total, queued = QueuedSeconds(worker);
    if (!idle && queued >= left) return false;
    limit = std::max(0.0, (left - queued) * speed);
  }
  const std::optional<int> item = table_.Next(limit, worker, NumAlive() <= 1);
  if (item.has_value()) {
    GrantItem(worker, *item);
    return true;
  }
  return idle && table_.num_todo() == 0 && GrantFromTail(worker);
}

void Coordinator::GrantItem(int worker, int item) {
  const double expected = ExpectedSeconds(worker, items_[static_cast<size_t>(item)].cost);
  const Lease& lease = table_.Grant(item, worker, clock_(), expected, QueuedSeconds(worker));
  Reply(Message::Kind::kGrant, worker, item, lease.epoch);
}

bool Coordinator::TakingOverPays(const Lease& lease, int worker) const {
  if (!IsAlive(lease.worker)) return true;
  const double here = ExpectedSeconds(worker, items_[static_cast<size_t>(lease.item)].cost);
  // The one that holds it is busy with another item; without a measure that says enough.
  return here == 0 || here < QueuedSeconds(lease.worker);
}

bool Coordinator::RepeatingPays(const Lease& lease, int worker) const {
  if (!IsAlive(lease.worker)) return true;
  const double cost = items_[static_cast<size_t>(lease.item)].cost;
  const double elapsed = clock_() - lease.begun_at;
  const double there = ExpectedSeconds(lease.worker, cost);
  if (there == 0) return elapsed > options_.leases.least_seconds;
  // One that is late is taken to last as long again.
  const double left = elapsed < kLate * there ? std::max(0.0, there - elapsed) : elapsed;
  return ExpectedSeconds(worker, cost) < left;
}

bool Coordinator::GrantFromTail(int worker) {
  const std::vector<const Lease*> leases = table_.Leases();
  const bool only = NumAlive() <= 1;
  const auto fits = [&](const Lease& lease) {
    return lease.worker != worker && table_.CountLeases(lease.item) == 1 &&
           table_.MayTry(lease.item, worker, only);
  };
  // What was granted last waits longest.
  for (auto each = leases.rbegin(); each != leases.rend(); ++each) {
    const Lease lease = **each;
    if (lease.begun || !fits(lease) || !TakingOverPays(lease, worker)) continue;
    Reply(Message::Kind::kDrop, lease.worker, lease.item, lease.epoch);
    table_.Release(lease.epoch);
    GrantItem(worker, lease.item);
    return true;
  }
  for (const Lease* lease : leases) {
    if (!lease->begun || !fits(*lease) || !RepeatingPays(*lease, worker)) continue;
    GrantItem(worker, lease->item);
    return true;
  }
  return false;
}

void Coordinator::HandleResult(const Message& message, Worker& worker) {
  GRAFT_CHECK(message.item >= 0 && message.item < table_.size(),
              absl::StrCat("worker ", message.worker, " sent a result of item ", message.item));
  const auto index = static_cast<size_t>(message.item);
  worker.last_moved = clock_();
  if (table_.state(message.item) == ItemState::kDone) {
    ++repeated_;
    if (results_[index] != message.bytes) {
      return Fail(BugError(absl::StrCat(ItemName(items_[index]), ": worker ", result_worker_[index],
                                        " found ", ShortHash(results_[index]), ", worker ",
                                        message.worker, " found ", ShortHash(message.bytes),
                                        " (first digits of the sha256), must be the same bytes")));
    }
    if (!log_->dirty()) return Reply(Message::Kind::kAck, message.worker, -1, message.epoch);
  } else {
    worker.done_cost = kDecay * worker.done_cost + items_[index].cost;
    worker.done_seconds = kDecay * worker.done_seconds + message.seconds;
    if (!log_->dirty()) oldest_unsynced_ = clock_();
    log_->Append(ids_[index], message.worker, message.bytes);
    DropLeases(message.item, message.worker);
    table_.Finish(message.item);
    results_[index] = message.bytes;
    result_worker_[index] = message.worker;
  }
  Message ack;
  ack.kind = Message::Kind::kAck;
  ack.worker = message.worker;
  ack.epoch = message.epoch;
  unacknowledged_.push_back(ack);
}

void Coordinator::HandleFailure(const Message& message) {
  Reply(Message::Kind::kAck, message.worker, -1, message.epoch);
  const Lease* const lease = table_.FindLease(message.epoch);
  if (lease == nullptr) return;  // it came twice, or the lease ran out and was counted
  const int item = lease->item;
  table_.Release(message.epoch);
  CountFailure(item, message.worker, message.numeric, message.bytes);
}

// A second worker that still holds an item given up is told so when it reports.
void Coordinator::CountFailure(int item, int worker, bool numeric, const std::string& reason) {
  const std::string name = ItemName(items_[static_cast<size_t>(item)]);
  LOG(WARNING) << name << ": worker " << worker << ": " << Printable(reason);
  const bool only = NumAlive() <= 1;
  if (!table_.CountFailure(item, worker, numeric, only, reason)) return;
  LOG(ERROR) << name << ": given up after " << table_.failures(item).count << " tries";
}

void Coordinator::DropLeases(int item, int but_worker) {
  for (const Lease* lease : table_.Leases()) {
    if (lease->item != item || lease->worker == but_worker) continue;
    Reply(Message::Kind::kDrop, lease->worker, item, lease->epoch);
  }
}

void Coordinator::ExpireLeases() {
  for (const Lease& lease : table_.Expired(clock_())) {
    table_.Release(lease.epoch);
    Reply(Message::Kind::kDrop, lease.worker, lease.item, lease.epoch);
    // An item that only waited there is not to blame.
    if (!lease.begun) continue;
    CountFailure(lease.item, lease.worker, false,
                 absl::StrFormat("no result and no sign of work within its lease of %.0f s",
                                 lease.deadline - lease.granted));
  }
}

void Coordinator::SyncWhenDue() {
  if (!log_->dirty()) return;
  const double begin = clock_();
  const double group = std::max(options_.sync_seconds, last_sync_seconds_ / kSyncShare);
  const bool waited = begin - oldest_unsynced_ >= group;
  if (!waited && !ending_ && !table_.all_settled()) return;
  const absl::Status synced = log_->Sync();
  last_sync_seconds_ = clock_() - begin;
  if (!synced.ok()) return Fail(synced);
  for (const Message& ack : unacknowledged_) transport_->Send(ack);
  unacknowledged_.clear();
}

void Coordinator::Fail(absl::Status failure) {
  if (failure_.ok()) failure_ = std::move(failure);
  unacknowledged_.clear();
}

void Coordinator::EndWhenDone() {
  if (ending_ || !(table_.all_settled() || stop_requested_ || !failure_.ok())) return;
  ending_ = true;
  for (const auto& [number, worker] : workers_) Reply(Message::Kind::kFinish, number);
}

void Coordinator::Reply(Message::Kind kind, int worker, int item, int64_t epoch) {
  Message message;
  message.kind = kind;
  message.worker = worker;
  message.item = item;
  message.epoch = epoch;
  // What was computed cannot be kept any more: nothing to wait for.
  message.stop = kind == Message::Kind::kFinish && !failure_.ok();
  transport_->Send(message);
}

int64_t Coordinator::num_goodbyes() const {
  return std::count_if(workers_.begin(), workers_.end(),
                       [](const auto& entry) { return entry.second.said_bye; });
}

bool Coordinator::IsAlive(int number) const {
  const auto found = workers_.find(number);
  if (found == workers_.end() || found->second.said_bye) return false;
  const Worker& worker = found->second;
  const LeaseRules& rules = options_.leases;
  const double limit = worker.interval < 0 ? rules.unknown_seconds
                                           : std::max(options_.silent_seconds,
                                                      rules.missed_renewals * worker.interval);
  return clock_() - worker.last_moved <= limit;
}

int64_t Coordinator::NumAlive() const {
  return std::count_if(workers_.begin(), workers_.end(),
                       [this](const auto& entry) { return IsAlive(entry.first); });
}

double Coordinator::SpeedOf(int worker) const {
  const auto found = workers_.find(worker);
  if (found != workers_.end() && found->second.done_seconds > 0) {
    return found->second.done_cost / found->second.done_seconds;
  }
  double cost = 0, seconds = 0;
  for (const auto& [number, each] : workers_) {
    cost += each.done_cost;
    seconds += each.done_seconds;
  }
  return seconds > 0 ? cost / seconds : 0;
}

double Coordinator::TotalSpeed() const {
  double total = 0;
  for (const auto& [number, worker] : workers_) {
    if (IsAlive(number)) total += SpeedOf(number);
  }
  return total;
}

double Coordinator::ExpectedSeconds(int worker, double cost) const {
  const double speed = SpeedOf(worker);
  return speed > 0 ? cost / speed : 0;
}

double Coordinator::QueuedSeconds(int worker) const {
  const double now = clock_();
  double seconds = 0;
  for (const Lease* lease : table_.LeasesOf(worker)) {
    const double all = ExpectedSeconds(worker, items_[static_cast<size_t>(lease->item)].cost);
    const double done = lease->begun ? now - lease->begun_at : 0;
    seconds += std::max(0.0, all - done);
  }
  return seconds;
}

ItemProgress Coordinator::progress() const {
  ItemProgress progress;
  progress.items = table_.size();
  progress.done = table_.num_done();
  progress.from_journal = from_journal_;
  progress.quarantined = table_.num_quarantined();
  progress.repeated = repeated_;
  progress.replicas_alive = NumAlive();
  const double speed = TotalSpeed();
  if (speed > 0) progress.eta_seconds = table_.open_cost() / speed;
  return progress;
}

absl::Status Coordinator::status() const {
  if (!failure_.ok()) return failure_;
  const std::vector<int> given_up = table_.Quarantined();
  if (!given_up.empty()) {
    bool numeric = false;
    for (const int item : given_up) numeric = numeric || table_.failures(item).numeric;
    const ItemTable::Failures& first = table_.failures(given_up.front());
    return MakeError(numeric ? ErrorKind::kNumeric : ErrorKind::kBug,
                     absl::StrCat(ItemName(items_[static_cast<size_t>(given_up.front())]),
                                  ": no result after ", first.count, " tries on replicas ",
                                  absl::StrJoin(first.workers, ", "), ": ", first.reason, "; ",
                                  given_up.size(), " of ", table_.size(), " items have none"));
  }
  if (table_.all_settled()) return absl::OkStatus();
  return MakeError(ErrorKind::kStopped,
                   absl::StrCat("on request after ", table_.num_done(), " of ", table_.size(),
                                " items; results kept, run again to go on"));
}

}  // namespace graft::trainer
