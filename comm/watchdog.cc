#include "comm/watchdog.h"

#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "comm/flight_dump.h"
#include "comm/flight_report.h"

namespace graft::comm {
namespace {

constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kRelease = std::memory_order_release;
// Between two ticks lies a quarter of a second; a process that slept this long was frozen.
constexpr int64_t kPauseNanos = NanosOf(5);
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

bool IsWatched(const BoardSlot& slot) {
  const int32_t state = slot.state.load(kAcquire);
  return state == BoardSlot::kOn || state == BoardSlot::kDumped;
}

// "phase step, step 12".
std::string PhaseText(Phase phase, int64_t step) {
  std::string text = absl::StrCat("phase ", PhaseName(phase));
  if (step >= 0) absl::StrAppend(&text, ", step ", step);
  return text;
}

}  // namespace

Watchdog::Watchdog(WatchdogIdentity identity, const Heartbeat& heartbeat,
                   const FlightRecorder& recorder, std::shared_ptr<NodeBoard> board, int slot)
    : identity_(std::move(identity)),
      heartbeat_(heartbeat),
      recorder_(recorder),
      board_(std::move(board)),
      slot_(slot) {}

void Watchdog::Stamp(int64_t now_ns) {
  if (board_ == nullptr) return;
  BoardSlot& slot = board_->slot(slot_);
  slot.rank.store(identity_.rank, kRelease);
  slot.pid.store(static_cast<int32_t>(::getpid()), kRelease);
  slot.phase.store(static_cast<int32_t>(heartbeat_.phase()), kRelease);
  slot.step.store(heartbeat_.step(), kRelease);
  slot.begun.store(recorder_.begun(), kRelease);
  slot.waiting.store(recorder_.waiting(), kRelease);
  slot.stamp_ns.store(now_ns, kRelease);
  int32_t empty = BoardSlot::kEmpty;
  slot.state.compare_exchange_strong(empty, BoardSlot::kOn, std::memory_order_acq_rel);
}

void Watchdog::NoteOwnPause(int64_t now_ns) {
  if (heartbeat_.entered_ns() != paused_phase_ns_) {
    paused_phase_ns_ = heartbeat_.entered_ns();
    paused_ns_ = 0;
  }
  if (last_tick_ns_ == 0) awake_since_ns_ = now_ns;
  if (last_tick_ns_ > 0 && now_ns - last_tick_ns_ > kPauseNanos) {
    awake_since_ns_ = now_ns;
    paused_ns_ += now_ns - last_tick_ns_;
  }
  last_tick_ns_ = now_ns;
}

std::optional<WatchdogFinding> Watchdog::Tick(int64_t now_ns) {
  NoteOwnPause(now_ns);
  Stamp(now_ns);
  if (board_ != nullptr && board_->alarm() >= 0 && board_->alarm() != identity_.rank) {
    return WatchdogFinding{WatchdogFinding::kAlarm, board_->alarm(),
                           absl::StrCat("rank ", board_->alarm(), kAlarmReason)};
  }
  if (auto silent = FindSilent(now_ns)) return silent;
  const int64_t deadline = heartbeat_.deadline_ns();
  if (deadline != kNever && now_ns - paused_ns_ > deadline) return Late(now_ns);
  return std::nullopt;
}

std::optional<WatchdogFinding> Watchdog::FindSilent(int64_t now_ns) const {
  if (board_ == nullptr) return std::nullopt;
  for (int i = 0; i < board_->size(); ++i) {
    BoardSlot& slot = board_->slot(i);
    if (i == slot_ || !IsWatched(slot)) continue;
    const int64_t seen = slot.stamp_ns.load(kAcquire);
    if (now_ns - std::max(seen, awake_since_ns_) <= NanosOf(kSilentSeconds)) continue;
    const int rank = slot.rank.load(kAcquire);
    const auto phase = static_cast<Phase>(slot.phase.load(kAcquire));
    return WatchdogFinding{
        WatchdogFinding::kSilent, rank,
        absl::StrFormat("rank %d (process %d on %s) has not run for %.1f s: stopped or dead; last "
                        "seen in %s; %s",
                        rank, slot.pid.load(kAcquire), identity_.host, SecondsOf(now_ns - seen),
                        PhaseText(phase, slot.step.load(kAcquire)), DescribeSelf(now_ns))};
  }
  return std::nullopt;
}

int Watchdog::WhoKeepsOthersWaiting() const {
  if (board_ == nullptr) return -1;
  int behind = -1;
  int64_t behind_begun = 0;
  for (int i = 0; i < board_->size(); ++i) {
    BoardSlot& slot = board_->slot(i);
    if (!IsWatched(slot) || slot.waiting.load(kAcquire) != 0) continue;
    const int64_t begun = slot.begun.load(kAcquire);
    if (behind >= 0 && begun >= behind_begun) continue;
    behind = slot.rank.load(kAcquire);
    behind_begun = begun;
  }
  return behind;
}

WatchdogFinding Watchdog::Late(int64_t now_ns) const {
  WatchdogFinding finding{WatchdogFinding::kLate, WhoKeepsOthersWaiting(), ""};
  const double seconds = SecondsOf(now_ns - heartbeat_.entered_ns());
  const double limit = SecondsOf(heartbeat_.deadline_ns() - heartbeat_.entered_ns());
  finding.text = absl::StrFormat("no end after %.1f s (limit %.1f s) on %s: %s", seconds, limit,
                                 identity_.host, DescribeSelf(now_ns));
  if (finding.rank >= 0 && identity_.size > 1) {
    absl::StrAppend(&finding.text, "; rank ", finding.rank,
                    finding.rank == identity_.rank
                        ? " waits for nobody: it is the one that hangs"
                        : " waits for nobody and is behind: it is the one that hangs");
  }
  return finding;
}

std::string Watchdog::DescribeSelf(int64_t now_ns) const {
  FlightDump dump;
  FlightEntry entry;
  const int64_t sequence = recorder_.waiting();
  dump.waiting = sequence;
  dump.now_us = now_ns / 1000;
  dump.groups = recorder_.Groups();
  if (recorder_.Read(sequence > 0 ? sequence : recorder_.begun(), &entry)) {
    dump.operations.push_back({.sequence = entry.sequence,
                               .group = entry.group,
                               .number = entry.number,
                               .op = entry.op,
                               .type = entry.type,
                               .peer = entry.peer,
                               .bytes = entry.bytes,
                               .step = entry.step,
                               .micro_batch = entry.micro_batch,
                               .enqueued_us = entry.enqueued_ns / 1000,
                               .waited_us = entry.waited_ns / 1000,
                               .finished_us = entry.finished_ns / 1000});
  }
  return absl::StrCat("rank ", identity_.rank, ", ",
                      PhaseText(heartbeat_.phase(), heartbeat_.step()), ", ",
                      DescribeActivity(dump));
}

void Watchdog::Leave() {
  if (board_ != nullptr) board_->slot(slot_).state.store(BoardSlot::kLeft, kRelease);
}

void Watchdog::NoteDumped() {
  if (board_ != nullptr) board_->slot(slot_).state.store(BoardSlot::kDumped, kRelease);
}

bool Watchdog::AllDumped(int except_rank) const {
  if (board_ == nullptr) return true;
  for (int i = 0; i < board_->size(); ++i) {
    BoardSlot& slot = board_->slot(i);
    if (slot.state.load(kAcquire) == BoardSlot::kOn && slot.rank.load(kAcquire) != except_rank)
      return false;
  }
  return true;
}

bool Watchdog::RaiseAlarm() { return board_ == nullptr || board_->RaiseAlarm(identity_.rank); }

}  // namespace graft::comm
