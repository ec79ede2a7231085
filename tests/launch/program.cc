#include "tests/launch/program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/testing/temp_folder.h"

namespace graft::testing {
namespace {

std::vector<std::string> CommandOf(const std::vector<std::string>& arguments, int ranks) {
  const char* const folder = std::getenv("GRAFT_BINARY_DIR");
  EXPECT_NE(folder, nullptr) << "run this through ctest";
  std::vector<std::string> command;
  if (ranks > 1) {
    command = {"mpirun",
               "-q",
               "-np",
               absl::StrCat(ranks),
               "--oversubscribe",
               "--allow-run-as-root",
               "--bind-to",
               "none",
               "--mca",
               "mpi_yield_when_idle",
               "1"};
  }
  command.push_back(absl::StrCat(folder == nullptr ? "" : folder, "/graft"));
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

[[noreturn]] void Become(const std::vector<std::string>& command, const std::string& out,
                         const std::string& err) {
  ::setpgid(0, 0);
  ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
  ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT, 0600), STDOUT_FILENO);
  ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT, 0600), STDERR_FILENO);
  std::vector<char*> argv;
  for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  ::execvp(argv[0], argv.data());
  ::_exit(127);
}

}  // namespace

std::string ProgramResult::LastLine() const {
  std::string last;
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(err, '\n'))) {
    if (!line.empty()) last = line;
  }
  return last;
}

ProgramResult RunGraft(const std::vector<std::string>& arguments, int ranks, int limit_seconds) {
  const TempFolder folder;
  const std::vector<std::string> command = CommandOf(arguments, ranks);
  const absl::Time start = absl::Now();
  const pid_t child = ::fork();
  if (child == 0) Become(command, folder.Path("out"), folder.Path("err"));
  int status = 0;
  struct rusage usage {};
  while (::wait4(child, &status, WNOHANG, &usage) == 0) {
    if (absl::Now() - start > absl::Seconds(limit_seconds)) ::kill(-child, SIGKILL);
    absl::SleepFor(absl::Milliseconds(5));
  }
  ProgramResult result;
  result.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = folder.Read("out");
  result.err = folder.Read("err");
  result.peak_kib = usage.ru_maxrss;
  return result;
}

void ExpectRefused(const ProgramResult& result, int code, const std::string& kind,
                   const std::vector<std::string>& parts) {
  static const long idle_kib = RunGraft({"--version"}).peak_kib;
  EXPECT_EQ(result.code, code) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.LastLine(), ::testing::StartsWith("graft: error: " + kind + ": "))
      << result.err;
  for (const std::string& part : parts) {
    EXPECT_THAT(result.LastLine(), ::testing::HasSubstr(part));
  }
  EXPECT_LT(result.seconds, 10);
  EXPECT_LT(result.peak_kib, idle_kib + 200 * 1024);
}

}  // namespace graft::testing
