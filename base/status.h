// Errors of graft: an absl::Status that carries one of graft's error kinds.
//
// Everyone uses this. Before and between steps functions return absl::Status or absl::StatusOr; inside a training step they
// throw StatusError; a broken invariant of our own is GRAFT_CHECK (kind `bug`). One place catches: the guard around every
// command (launch/guard.h). Kinds and exit codes: interfaces.md section 1.
#pragma once

#include <stdexcept>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace graft {

enum class ErrorKind { kUsage, kInput, kBug, kIo, kStopped, kPeer, kNumeric, kRecipe };

// Exit code of a kind: usage 64, input 65, bug 70, io 74, stopped 75, peer 76, numeric 77, recipe 78.
int ExitCode(ErrorKind kind);
// The word that stands in the last line of a failed run: "usage", "input", "bug", "io", "stopped", "peer", "numeric", "recipe".
const char* KindName(ErrorKind kind);

// Makes an error. `message` says what, where, what was found, what is allowed, in one line; values that come from
// files go through Printable (base/text.h).
absl::Status MakeError(ErrorKind kind, const std::string& message);
inline absl::Status UsageError(const std::string& message) { return MakeError(ErrorKind::kUsage, message); }
inline absl::Status InputError(const std::string& message) { return MakeError(ErrorKind::kInput, message); }
inline absl::Status BugError(const std::string& message) { return MakeError(ErrorKind::kBug, message); }
inline absl::Status IoError(const std::string& message) { return MakeError(ErrorKind::kIo, message); }
inline absl::Status PeerError(const std::string& message) { return MakeError(ErrorKind::kPeer, message); }
inline absl::Status NumericError(const std::string& message) { return MakeError(ErrorKind::kNumeric, message); }
inline absl::Status RecipeError(const std::string& message) { return MakeError(ErrorKind::kRecipe, message); }

// The kind of a non-OK status; kBug for a status that graft did not make.
ErrorKind KindOf(const absl::Status& status);
// 0 for OK.
int ExitCodeOf(const absl::Status& status);
// The same error with "prefix: " in front of its message; OK stays OK.
absl::Status Annotate(const absl::Status& status, const std::string& prefix);

// What is thrown inside a step.
class StatusError : public std::runtime_error {
 public:
  explicit StatusError(absl::Status status)
      : std::runtime_error(std::string(status.message())), status_(std::move(status)) {}
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

void ThrowIfError(const absl::Status& status);
template <typename T>
T ValueOrThrow(absl::StatusOr<T> value) {
  ThrowIfError(value.status());
  return *std::move(value);
}

[[noreturn]] void ThrowCheckFailure(const char* file, int line, const char* condition, const std::string& detail);

}  // namespace graft

#define GRAFT_STATUS_CONCAT_INNER(a, b) a##b
#define GRAFT_STATUS_CONCAT(a, b) GRAFT_STATUS_CONCAT_INNER(a, b)

#define GRAFT_RETURN_IF_ERROR(expression)                       \
  do {                                                          \
    absl::Status graft_status_ = (expression);                  \
    if (!graft_status_.ok()) return graft_status_;              \
  } while (false)

#define GRAFT_ASSIGN_OR_RETURN(target, expression) \
  GRAFT_ASSIGN_OR_RETURN_IMPL(GRAFT_STATUS_CONCAT(graft_statusor_, __LINE__), target, expression)
#define GRAFT_ASSIGN_OR_RETURN_IMPL(holder, target, expression) \
  auto holder = (expression);                                   \
  if (!holder.ok()) return holder.status();                     \
  target = *std::move(holder)

// A broken invariant of our own: throws StatusError of kind bug (exit 70). `detail` is a std::string expression.
#define GRAFT_CHECK(condition, detail)                                                   \
  do {                                                                                   \
    if (!(condition)) ::graft::ThrowCheckFailure(__FILE__, __LINE__, #condition, detail); \
  } while (false)
