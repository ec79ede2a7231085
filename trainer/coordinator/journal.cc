#include "trainer/coordinator/journal.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/io_calls.h"
#include "base/logging.h"
#include "base/status.h"
#include "base/text.h"
#include "comm/crc32c.h"
#include "trainer/coordinator/bytes.h"

namespace graft::trainer {
namespace {

constexpr char kFileName[] = "journal.bin";
constexpr char kLockName[] = "lock";
constexpr std::string_view kMagic = "GRFTJRNL";
constexpr uint32_t kVersion = 1;
constexpr size_t kKeyDigits = 64;
constexpr size_t kHeaderBytes = 8 + 4 + kKeyDigits + 4;
constexpr size_t kRecordHead = 8;
constexpr size_t kMaxPayload = size_t{1} << 20;
// Bytes of a result in one entry: what else stands in a payload fits beside it.
constexpr size_t kMaxPart = kMaxPayload - 4096;
constexpr int64_t kMaxFile = int64_t{1} << 36;
constexpr int64_t kMaxStart = int64_t{1} << 30;  // shifted by 32 it is an epoch (coordinator.cc)
constexpr absl::Duration kLockWait = absl::Seconds(10);

enum class Entry : uint8_t { kStart = 1, kPart = 2, kLastPart = 3 };

std::string Header(const std::string& run_key) {
  std::string header(kMagic);
  AppendNumber(&header, kVersion);
  header += run_key;
  AppendNumber(&header, comm::Crc32c(header.data(), header.size()));
  return header;
}

std::string Record(std::string_view payload) {
  std::string record;
  record.reserve(kRecordHead + payload.size());
  AppendNumber(&record, static_cast<uint32_t>(payload.size()));
  AppendNumber(&record, comm::Crc32c(payload.data(), payload.size()));
  return record += payload;
}

void AppendEntry(std::string* out, Entry kind, std::string_view bytes) {
  AppendNumber(out, static_cast<uint8_t>(kind));
  AppendNumber(out, static_cast<uint32_t>(bytes.size()));
  *out += bytes;
}

// The payload of the record at the front of `bytes`; nullopt when there is no whole, valid one.
std::optional<std::string_view> ValidRecord(std::string_view bytes) {
  ByteReader reader(bytes);
  const auto length = reader.Number<uint32_t>();
  const auto checksum = reader.Number<uint32_t>();
  // Empty payloads are never written: a stretch of zeros is no record.
  if (length == 0 || length > kMaxPayload) return std::nullopt;
  const std::string_view payload = reader.Bytes(length);
  if (!reader.ok()) return std::nullopt;
  if (comm::Crc32c(payload.data(), payload.size()) != checksum) return std::nullopt;
  return payload;
}

// Looks for a valid record behind a bad one. Its place is not known when the bad one's length is
// what is damaged, so every place is tried; the first bytes of a payload keep that cheap.
bool ValidRecordWithin(std::string_view bytes) {
  for (size_t at = 1; at + kRecordHead < bytes.size(); ++at) {
    const auto kind = static_cast<uint8_t>(bytes[at + kRecordHead]);
    if (kind < 1 || kind > 3) continue;
    if (ValidRecord(bytes.substr(at)).has_value()) return true;
  }
  return false;
}

std::string At(const std::string& path, size_t offset) {
  return absl::StrCat(Printable(path), ": byte ", offset);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Journal>> Journal::Open(const std::string& folder,
                                                       const std::string& run_key) {
  GRAFT_CHECK(run_key.size() == kKeyDigits, "a run key has 64 digits");
  GRAFT_RETURN_IF_ERROR(MakeDirs(folder));
  std::unique_ptr<Journal> journal(new Journal(JoinPath(folder, kFileName)));
  GRAFT_ASSIGN_OR_RETURN(journal->lock_, FileLock::Acquire(JoinPath(folder, kLockName), kLockWait));
  if (!PathExists(journal->path_)) {
    GRAFT_RETURN_IF_ERROR(AtomicWriteFile(journal->path_, Header(run_key)));
  } else {
    GRAFT_RETURN_IF_ERROR(journal->Replay(run_key));
  }
  journal->file_ =
      UniqueFd(Io().Open(journal->path_.c_str(), O_WRONLY | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0));
  if (!journal->file_.valid()) return journal->Failed("opening it");
  std::string start;
  AppendNumber(&start, journal->start_);
  AppendEntry(&journal->pending_, Entry::kStart, start);
  GRAFT_RETURN_IF_ERROR(journal->Sync());
  return journal;
}

absl::Status Journal::Replay(const std::string& run_key) {
  GRAFT_ASSIGN_OR_RETURN(const std::string file, ReadFile(path_, kMaxFile));
  GRAFT_RETURN_IF_ERROR(CheckHeader(file, run_key));
  const std::string_view bytes = file;
  size_t at = kHeaderBytes;
  while (at < bytes.size()) {
    const std::optional<std::string_view> payload = ValidRecord(bytes.substr(at));
    if (!payload.has_value()) break;
    GRAFT_RETURN_IF_ERROR(ReadEntries(*payload, at));
    at += kRecordHead + payload->size();
  }
  parts_.clear();  // a result whose last part never came
  if (at == bytes.size()) return absl::OkStatus();
  if (ValidRecordWithin(bytes.substr(at))) {
    return IoError(absl::StrCat(At(path_, at),
                                ": the record is damaged, and valid ones follow: the disk has "
                                "changed it; move the file away to compute everything anew"));
  }
  LOG(WARNING) << At(path_, at) << ": the last record is not whole (a crash while it was written): "
               << bytes.size() - at << " bytes cut off";
  return AtomicWriteFile(path_, file.substr(0, at));
}

absl::Status Journal::CheckHeader(const std::string& file, const std::string& run_key) const {
  const std::string found = file.substr(0, kHeaderBytes);
  if (found == Header(run_key)) return absl::OkStatus();
  ByteReader reader(found);
  const std::string_view magic = reader.Bytes(kMagic.size());
  const auto version = reader.Number<uint32_t>();
  const std::string key(reader.Bytes(kKeyDigits));
  const bool whole = reader.Number<uint32_t>() ==
                     comm::Crc32c(found.data(), std::max<size_t>(4, found.size()) - 4);
  if (!reader.ok() || magic != kMagic || !whole) {
    return IoError(absl::StrCat(Printable(path_),
                                ": is not a journal of graft, or its header is "
                                "damaged; move it away to compute anew"));
  }
  if (version != kVersion) {
    return IoError(
        absl::StrCat(Printable(path_), ": has version ", version, ", must be ", kVersion));
  }
  return IoError(absl::StrCat(
      Printable(path_), ": holds results of another run (key ", Printable(key.substr(0, 16)),
      "..., this run ", run_key.substr(0, 16),
      "...): model, adapter, data, score.method, model.dtype and "
      "parallel.threads must be the same; choose another score.output or move the file away"));
}

absl::Status Journal::ReadEntries(std::string_view payload, size_t offset) {
  ByteReader reader(payload);
  while (!reader.done()) {
    const auto kind = static_cast<Entry>(reader.Number<uint8_t>());
    const auto length = reader.Number<uint32_t>();
    ByteReader entry(reader.Bytes(length));
    if (!reader.ok()) return IoError(At(path_, offset) + ": an entry is longer than its record");
    if (kind == Entry::kStart) {
      const auto start = entry.Number<int64_t>();
      if (!entry.done() || start < 1 || start >= kMaxStart)
        return IoError(absl::StrCat(At(path_, offset), ": ", start, " is no number of a start"));
      start_ = std::max(start_, start + 1);
      continue;
    }
    const std::string id(entry.Bytes(kKeyDigits));
    const int worker = entry.Number<int32_t>();
    if (!entry.ok() || (kind != Entry::kPart && kind != Entry::kLastPart)) {
      return IoError(absl::StrCat(At(path_, offset), ": an entry of kind ", static_cast<int>(kind),
                                  " and ", length, " bytes is none of this version"));
    }
    std::string& bytes = parts_[id].bytes;
    bytes += entry.rest();
    if (kind == Entry::kPart) continue;
    Result result{worker, std::move(bytes)};
    parts_.erase(id);
    const auto [kept, added] = results_.emplace(id, std::move(result));
    if (!added) {
      return IoError(absl::StrCat(At(path_, offset), ": item ", Printable(id), " comes twice"));
    }
  }
  return absl::OkStatus();
}

void Journal::Append(const std::string& id, int worker, const std::string& result) {
  results_[id] = {worker, result};
  std::string_view rest = result;
  do {
    const std::string_view part = rest.substr(0, kMaxPart);
    rest.remove_prefix(part.size());
    std::string entry = id;
    AppendNumber(&entry, static_cast<int32_t>(worker));
    entry += part;
    AppendEntry(&pending_, rest.empty() ? Entry::kLastPart : Entry::kPart, entry);
  } while (!rest.empty());
}

absl::Status Journal::Sync() {
  // Behind half a record no other one may stand.
  GRAFT_RETURN_IF_ERROR(failure_);
  failure_ = WritePending();
  return failure_;
}

absl::Status Journal::WritePending() {
  // Whole entries, as many as a record holds.
  size_t begin = 0, end = 0;
  while (end < pending_.size()) {
    uint32_t length = 0;
    std::memcpy(&length, pending_.data() + end + 1, sizeof(length));
    const size_t next = end + 1 + sizeof(length) + length;
    if (next - begin > kMaxPayload) {
      GRAFT_RETURN_IF_ERROR(WriteRecord(std::string_view(pending_).substr(begin, end - begin)));
      begin = end;
    }
    end = next;
  }
  GRAFT_RETURN_IF_ERROR(WriteRecord(std::string_view(pending_).substr(begin)));
  pending_.clear();
  return absl::OkStatus();
}

absl::Status Journal::WriteRecord(std::string_view payload) {
  const std::string record = Record(payload);
  for (size_t done = 0; done < record.size();) {
    const ssize_t count = Io().Write(file_.get(), record.data() + done, record.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Failed("writing it");
    done += static_cast<size_t>(count);
  }
  int synced = Io().Fsync(file_.get());
  while (synced != 0 && errno == EINTR) synced = Io().Fsync(file_.get());
  return synced == 0 ? absl::OkStatus() : Failed("fsync");
}

absl::Status Journal::Failed(const char* what) const {
  return IoError(absl::StrCat(Printable(path_), ": ", what, ": ", std::strerror(errno), " (errno ",
                              errno, ")"));
}

const std::string* Journal::Find(const std::string& id, int* worker) const {
  const auto found = results_.find(id);
  if (found == results_.end()) return nullptr;
  if (worker != nullptr) *worker = found->second.worker;
  return &found->second.bytes;
}

}  // namespace graft::trainer
