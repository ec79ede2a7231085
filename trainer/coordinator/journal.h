// <score.output>/journal.bin: the results of a scoring run, so that a new start computes only what
// is missing (reliability.md 5). Rank 0 alone opens it. No LibTorch, no MPI; every call that
// changes a file goes through base/io_calls.h.
//
// File: header "GRFTJRNL", u32 version, 64 hex digits run key, u32 crc32c of what is before it.
// Then records [u32 length <= 1 MiB, u32 crc32c, payload], one per fsync: the
// next record is written only when the one before it is on the disk, so a power loss can damage the
// last one only. A payload is a list of entries [u8 kind, u32 length, bytes]; a large result is cut
// into several.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/file.h"

namespace graft::trainer {

// Where results are kept: the journal, or memory in a simulation.
class ResultLog {
 public:
  virtual ~ResultLog() = default;
  // The result of item `id` counts as kept once a later Sync has returned OK.
  virtual void Append(const std::string& id, int worker, const std::string& result) = 0;
  virtual absl::Status Sync() = 0;
  // Something waits for a Sync.
  virtual bool dirty() const = 0;
  // How often the run was started, this time included.
  virtual int64_t start() const = 0;
  // Null = not there. `worker` (may be null) gets who computed it.
  virtual const std::string* Find(const std::string& id, int* worker) const = 0;
};

class Journal : public ResultLog {
 public:
  // Takes <folder>/lock (waits 10 s), reads or makes <folder>/journal.bin. Kind io: locked; of
  // another run; damaged before its end. A torn end is cut off, with a warning.
  static absl::StatusOr<std::unique_ptr<Journal>> Open(const std::string& folder,
                                                       const std::string& run_key);

  void Append(const std::string& id, int worker, const std::string& result) override;
  absl::Status Sync() override;
  bool dirty() const override { return !pending_.empty(); }
  int64_t start() const override { return start_; }
  const std::string* Find(const std::string& id, int* worker) const override;
  int64_t num_results() const { return static_cast<int64_t>(results_.size()); }

 private:
  struct Result {
    int worker = 0;
    std::string bytes;
  };
  explicit Journal(std::string path) : path_(std::move(path)) {}
  absl::Status Replay(const std::string& run_key);
  absl::Status CheckHeader(const std::string& file, const std::string& run_key) const;
  absl::Status ReadEntries(std::string_view payload, size_t offset);
  absl::Status WritePending();
  absl::Status WriteRecord(std::string_view payload);
  absl::Status Failed(const char* what) const;  // kind io, with errno

  std::string path_;
  std::unique_ptr<FileLock> lock_;
  UniqueFd file_;
  int64_t start_ = 1;
  std::unordered_map<std::string, Result> results_;  // by id
  std::unordered_map<std::string, Result> parts_;    // results of which the end is missing
  std::string pending_;                              // entries for the next record
  absl::Status failure_;                             // of a write: nothing is written after it
};

}  // namespace graft::trainer
