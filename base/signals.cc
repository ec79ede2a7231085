#include "base/signals.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace graft {
namespace {

std::atomic<bool> g_stop_requested{false};
std::atomic<int> g_dump_requests{0};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void OnStopSignal(int) { g_stop_requested.store(true); }

void OnDumpSignal(int) { g_dump_requests.fetch_add(1); }

void Handle(int signal, void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  ::sigaction(signal, &action, nullptr);
}

}  // namespace

void InstallStopHandlers() {
  Handle(SIGUSR1, OnStopSignal, SA_RESTART);
  Handle(SIGTERM, OnStopSignal, SA_RESTART);
  // The second INT finds the default action again.
  Handle(SIGINT, OnStopSignal, SA_RESTART | static_cast<int>(SA_RESETHAND));
  Handle(SIGHUP, ::isatty(STDERR_FILENO) == 1 ? OnStopSignal : SIG_IGN, SA_RESTART);
  Handle(SIGUSR2, OnDumpSignal, SA_RESTART);
}

bool StopRequested() { return g_stop_requested.load(); }

int DumpRequests() { return g_dump_requests.load(); }

void RequestStop() { g_stop_requested.store(true); }

void BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

}  // namespace graft
