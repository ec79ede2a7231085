#include "base/status.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace graft {
namespace {

constexpr char kPayloadUrl[] = "graft/kind";

struct KindRow {
  ErrorKind kind;
  int exit_code;
  const char* name;
  absl::StatusCode code;
};

constexpr KindRow kRows[] = {
    {ErrorKind::kUsage, 64, "usage", absl::StatusCode::kInvalidArgument},
    {ErrorKind::kInput, 65, "input", absl::StatusCode::kDataLoss},
    {ErrorKind::kBug, 70, "bug", absl::StatusCode::kInternal},
    {ErrorKind::kIo, 74, "io", absl::StatusCode::kUnavailable},
    {ErrorKind::kStopped, 75, "stopped", absl::StatusCode::kCancelled},
    {ErrorKind::kPeer, 76, "peer", absl::StatusCode::kDeadlineExceeded},
    {ErrorKind::kNumeric, 77, "numeric", absl::StatusCode::kOutOfRange},
    {ErrorKind::kRecipe, 78, "recipe", absl::StatusCode::kFailedPrecondition},
};

const KindRow& RowOf(ErrorKind kind) {
  for (const KindRow& row : kRows) {
    if (row.kind == kind) return row;
  }
  return kRows[2];
}

}  // namespace

int ExitCode(ErrorKind kind) { return RowOf(kind).exit_code; }
const char* KindName(ErrorKind kind) { return RowOf(kind).name; }

absl::Status MakeError(ErrorKind kind, const std::string& message) {
  const KindRow& row = RowOf(kind);
  absl::Status status(row.code, message);
  status.SetPayload(kPayloadUrl, absl::Cord(row.name));
  return status;
}

ErrorKind KindOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayloadUrl);
  if (!payload.has_value()) return ErrorKind::kBug;
  for (const KindRow& row : kRows) {
    if (*payload == row.name) return row.kind;
  }
  return ErrorKind::kBug;
}

int ExitCodeOf(const absl::Status& status) { return status.ok() ? 0 : ExitCode(KindOf(status)); }

absl::Status Annotate(const absl::Status& status, const std::string& prefix) {
  if (status.ok()) return status;
  return MakeError(KindOf(status), absl::StrCat(prefix, ": ", status.message()));
}

void ThrowIfError(const absl::Status& status) {
  if (!status.ok()) throw StatusError(status);
}

void ThrowCheckFailure(const char* file, int line, const char* condition, const std::string& detail) {
  throw StatusError(BugError(absl::StrCat(file, ":", line, ": ", condition, " does not hold: ", detail)));
}

}  // namespace graft
