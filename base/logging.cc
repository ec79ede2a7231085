#include "base/logging.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <iomanip>

#include "base/status.h"
#include "base/text.h"

namespace graft {
namespace {

std::atomic<int> g_rank{-1};
char g_last_fatal[1024] = "a check failed";

void WritePrefix(std::ostream& stream, const google::LogMessageInfo& info, void*) {
  const int rank = g_rank.load();
  stream << info.severity[0] << ' ' << std::setfill('0') << std::setw(2) << info.time.hour() << ':'
         << std::setw(2) << info.time.min() << ':' << std::setw(2) << info.time.sec();
  if (rank >= 0) stream << " rank " << rank;
  stream << ' ' << info.filename << ':' << info.line_number << ']';
}

// Keeps the message of a failed CHECK for the last line.
class FatalSink : public google::LogSink {
 public:
  using google::LogSink::send;
  void send(google::LogSeverity severity, const char*, const char* file, int line,
            const google::LogMessageTime&, const char* message, size_t size) override {
    if (severity != google::GLOG_FATAL) return;
    const std::string text = Printable(std::string(message, size), 800);
    std::snprintf(g_last_fatal, sizeof(g_last_fatal), "%s:%d: %s", file, line, text.c_str());
  }
};

// glog wants a function type that never returns, which C++ attributes do not make.
__attribute__((noreturn)) void OnFatal() {
  std::fprintf(stderr, "graft: error: bug: %s\n", g_last_fatal);
  std::fflush(stderr);
  ::_exit(ExitCode(ErrorKind::kBug));
}

}  // namespace

void InitLogging(const char* program) {
  static FatalSink sink;
  FLAGS_logtostderr = true;
  google::InitGoogleLogging(program, &WritePrefix);
  google::AddLogSink(&sink);
  google::InstallFailureFunction(&OnFatal);
}

void SetLogRank(int rank) { g_rank.store(rank); }

}  // namespace graft
