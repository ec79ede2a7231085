#include "launch/guard.h"

#include <unistd.h>

#include <cstdio>
#include <exception>
#include <new>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/logging.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::launch {
namespace {

// Turns whatever `body` throws into a status; *threw tells the two apart.
absl::Status RunCatching(const std::function<absl::Status()>& body, bool* threw) {
  *threw = true;
  try {
    absl::Status status = body();
    *threw = false;
    return status;
  } catch (const StatusError& error) {
    return error.status();
  } catch (const std::bad_alloc&) {
    return BugError("out of memory; lower optim.micro_batch or use more pipeline stages");
  } catch (const std::exception& error) {
    // LibTorch appends a C++ stack trace to the first line.
    const std::string text = error.what();
    return BugError(text.substr(0, text.find('\n')));
  } catch (...) {
    return BugError("an exception of unknown type");
  }
}

// {largest exit code, lowest failing rank} over all ranks; {0, size} when all are well.
struct Verdict {
  int code = 0;
  int failing_rank = 0;
};

Verdict AgreeOnVerdict(comm::Communicator& all, const absl::Status& mine) {
  int64_t values[2] = {ExitCodeOf(mine), mine.ok() ? 0 : all.size() - all.rank()};
  comm::Buffer buffer;
  buffer.data = values;
  buffer.count = 2;
  buffer.type = comm::DType::kInt64;
  all.AllReduce(buffer, comm::ReduceOp::kMax);
  return {static_cast<int>(values[0]), static_cast<int>(all.size() - values[1])};
}

std::string LastLine(const absl::Status& status) {
  const ErrorKind kind = KindOf(status);
  const std::string message =
      Printable(absl::StrReplaceAll(std::string(status.message()), {{"\n", "; "}}), 2000);
  return kind == ErrorKind::kStopped
             ? absl::StrCat("graft: stopped: ", message, "\n")
             : absl::StrCat("graft: error: ", KindName(kind), ": ", message, "\n");
}

}  // namespace

void PrintLastLine(const absl::Status& status) {
  const std::string line = LastLine(status);
  std::fflush(stdout);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

void WriteLastLine(const absl::Status& status) {
  const std::string line = LastLine(status);
  if (::write(STDERR_FILENO, line.data(), line.size()) < 0) return;  // nobody is left to be told
}

int RunGuarded(comm::Communicator& all, const std::function<absl::Status()>& body,
               const std::function<std::string()>& where,
               const std::function<void(const absl::Status&)>& before_abort) {
  bool threw = false;
  absl::Status mine = RunCatching(body, &threw);
  if (!threw && all.size() > 1) {
    Verdict verdict;
    const absl::Status agreed = RunCatching(
        [&] {
          verdict = AgreeOnVerdict(all, mine);
          return absl::OkStatus();
        },
        &threw);
    if (!threw) {
      if (verdict.code != 0 && verdict.failing_rank == all.rank()) PrintLastLine(mine);
      return verdict.code;
    }
    if (mine.ok()) mine = agreed;
  }
  if (mine.ok()) return 0;
  if (threw && where) LOG(ERROR) << where();
  if (threw && before_abort) before_abort(mine);
  PrintLastLine(mine);
  const int code = ExitCodeOf(mine);
  if (threw && all.size() > 1) all.Abort(code);
  return code;
}

}  // namespace graft::launch
