#include "base/signals.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <initializer_list>

namespace graft {
namespace {

// In a child: raises the signals; exits 10 + (a stop was requested).
[[noreturn]] void Raise(std::initializer_list<int> signals) {
  InstallStopHandlers();
  for (const int signal : signals) ::raise(signal);
  ::_exit(StopRequested() ? 11 : 10);
}

TEST(SignalsDeathTest, StopSignalsRequestAStop) {
  EXPECT_EXIT(Raise({}), ::testing::ExitedWithCode(10), "");
  EXPECT_EXIT(Raise({SIGUSR1}), ::testing::ExitedWithCode(11), "");
  EXPECT_EXIT(Raise({SIGTERM}), ::testing::ExitedWithCode(11), "");
  EXPECT_EXIT(Raise({SIGINT}), ::testing::ExitedWithCode(11), "");
  EXPECT_EXIT(Raise({SIGUSR1, SIGUSR1, SIGTERM, SIGINT}), ::testing::ExitedWithCode(11), "");
}

TEST(SignalsDeathTest, TheSecondIntKills) {
  EXPECT_EXIT(Raise({SIGINT, SIGINT}), ::testing::KilledBySignal(SIGINT), "");
  EXPECT_EXIT(Raise({SIGTERM, SIGINT, SIGINT}), ::testing::KilledBySignal(SIGINT), "");
}

// A death test's stderr is a pipe, not a terminal.
TEST(SignalsDeathTest, HangUpIsIgnoredWithoutATerminal) {
  EXPECT_EXIT(Raise({SIGHUP}), ::testing::ExitedWithCode(10), "");
}

[[noreturn]] void RaiseDump() {
  InstallStopHandlers();
  for (int i = 0; i < 3; ++i) ::raise(SIGUSR2);
  ::_exit(StopRequested() ? 99 : DumpRequests());
}

TEST(SignalsDeathTest, Usr2IsCountedAndStopsNothing) {
  EXPECT_EXIT(RaiseDump(), ::testing::ExitedWithCode(3), "");
}

[[noreturn]] void RaiseBlocked() {
  InstallStopHandlers();
  BlockStopSignals();
  ::raise(SIGUSR1);
  ::raise(SIGTERM);
  ::_exit(StopRequested() ? 11 : 10);
}

TEST(SignalsDeathTest, AuxiliaryThreadsLeaveThemToTheMainThread) {
  EXPECT_EXIT(RaiseBlocked(), ::testing::ExitedWithCode(10), "");
}

}  // namespace
}  // namespace graft
