#include "comm/watchdog_thread.h"

#include <chrono>
#include <utility>

#include "base/signals.h"
#include "base/status.h"

namespace graft::comm {
namespace {

constexpr auto kTick = std::chrono::milliseconds(250);
constexpr auto kPoll = std::chrono::milliseconds(20);
constexpr double kDumpSeconds = 3, kPrintSeconds = 1;
// A rank that did not raise the alarm leaves the word, and the exit code, to the one that did.
constexpr auto kPatience = std::chrono::seconds(5);

}  // namespace

WatchdogThread::WatchdogThread(std::unique_ptr<Watchdog> watchdog, WatchdogActions actions,
                               MonotonicClock clock)
    : watchdog_(std::move(watchdog)),
      actions_(std::move(actions)),
      clock_(clock),
      dumps_before_(DumpRequests()),
      thread_([this] { Run(); }) {}

WatchdogThread::~WatchdogThread() {
  stop_.store(true);
  thread_.join();
  watchdog_->Leave();
}

void WatchdogThread::Run() {
  BlockStopSignals();
  int dumps = dumps_before_;
  auto next = std::chrono::steady_clock::now();
  while (!stop_.load()) {
    // Short naps, so that the end of a run does not wait for a tick.
    std::this_thread::sleep_for(kPoll);
    if (const int requests = DumpRequests(); requests != dumps) {
      dumps = requests;
      DumpSelf("on request (USR2)");
    }
    if (std::chrono::steady_clock::now() < next) continue;
    next = std::chrono::steady_clock::now() + kTick;
    if (const auto finding = watchdog_->Tick(clock_())) {
      Respond(*finding);
      return;
    }
  }
}

void WatchdogThread::Respond(const WatchdogFinding& finding) {
  const bool speaks = finding.kind != WatchdogFinding::kAlarm && watchdog_->RaiseAlarm();
  DumpSelf(finding.text);
  watchdog_->NoteDumped();
  if (speaks) {
    WaitForOthers(kDumpSeconds, finding.rank);
    RunWithin(kPrintSeconds,
              [print = actions_.print, text = finding.text] { print(PeerError(text)); });
  } else {
    std::this_thread::sleep_for(kPatience);
  }
  actions_.exit(ExitCode(ErrorKind::kPeer));
}

void WatchdogThread::RunWithin(double seconds, std::function<void()> task) {
  // Detached; what it uses, it owns.
  const auto done = std::make_shared<std::atomic<bool>>(false);
  std::thread([done, task = std::move(task)] {
    BlockStopSignals();
    task();
    done->store(true);
  }).detach();
  const int64_t end = MonotonicNanos() + NanosOf(seconds);
  while (!done->load() && MonotonicNanos() < end) std::this_thread::sleep_for(kPoll);
}

void WatchdogThread::DumpSelf(const std::string& reason) {
  RunWithin(kDumpSeconds, [dump = actions_.dump, reason] { dump(reason); });
}

void WatchdogThread::WaitForOthers(double seconds, int except_rank) {
  const int64_t end = MonotonicNanos() + NanosOf(seconds);
  while (!watchdog_->AllDumped(except_rank) && MonotonicNanos() < end) {
    std::this_thread::sleep_for(kPoll);
  }
}

void WatchdogThread::DumpNode(const std::string& reason) {
  const bool first = watchdog_->RaiseAlarm();
  DumpSelf(reason);
  watchdog_->NoteDumped();
  if (first) WaitForOthers(1, /*except_rank=*/-1);
}

}  // namespace graft::comm
