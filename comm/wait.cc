#include "comm/wait.h"

#include <sched.h>

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status.h"

namespace graft::comm {
namespace {

constexpr double kSpinSeconds = 200e-6;
constexpr double kYieldSeconds = 2e-3;
constexpr auto kSleep = std::chrono::microseconds(50);
// A message names this many missing ranks at most.
constexpr std::size_t kNamedPeers = 8;

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Waiter::Waiter(absl::Duration limit)
    : limit_seconds_(absl::ToDoubleSeconds(limit)), start_(Clock::now()), last_progress_(start_) {}

bool Waiter::Pause() {
  if (waited_seconds() > limit_seconds_) return false;
  const double idle = idle_seconds();
  if (idle < kSpinSeconds) return true;
  if (idle < kYieldSeconds) {
    sched_yield();
  } else {
    std::this_thread::sleep_for(kSleep);
  }
  return true;
}

void Waiter::NoteProgress() { last_progress_ = Clock::now(); }

double Waiter::waited_seconds() const { return SecondsSince(start_); }

double Waiter::idle_seconds() const { return SecondsSince(last_progress_); }

BlockedTimer::~BlockedTimer() { *total_ += SecondsSince(start_); }

std::string Describe(const Communicator& comm, const char* operation, const std::string& reason) {
  return absl::StrCat("communicator ", comm.name(), " (", comm.backend(), ", ", comm.size(),
                      " ranks): ", operation, " on rank ", comm.rank(), ": ", reason);
}

absl::Status TimeoutError(const Communicator& comm, const char* operation,
                          const std::vector<int>& peers, double seconds) {
  std::vector<int> unique = peers;
  std::sort(unique.begin(), unique.end());
  unique.erase(std::unique(unique.begin(), unique.end()), unique.end());
  const std::size_t hidden = unique.size() > kNamedPeers ? unique.size() - kNamedPeers : 0;
  unique.resize(unique.size() - hidden);
  std::string who = unique.size() == 1 ? "rank " : "ranks ";
  absl::StrAppend(&who, absl::StrJoin(unique, ", "));
  if (hidden > 0) absl::StrAppend(&who, " and ", hidden, " more");
  return PeerError(Describe(comm, operation,
                            absl::StrFormat("no answer from %s for %.1f s (limit %.1f s)", who,
                                            seconds, absl::ToDoubleSeconds(comm.timeout()))));
}

}  // namespace graft::comm
