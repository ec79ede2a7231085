// Files: reading untrusted ones safely, writing whole files atomically, folders, the lock of a run
// (reliability.md 1.3, 6). Used by every reader and writer of model folders, data sets, adapters
// and checkpoints. What is wrong with the file itself (absent, not a regular file, too large, a
// link that leaves its folder) is kind input; what the system refuses (EACCES, EIO, ENOSPC, ...) is
// kind io with errno and path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace graft {

// A file descriptor that closes itself.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.Release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  ~UniqueFd();
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release();

 private:
  int fd_ = -1;
};

struct ReadOptions {
  // Allow a symbolic link as the last component to lead anywhere. Without it the target must stay
  // below the parent of the file's folder; in a Hugging Face cache (.../models--x/snapshots/HASH/)
  // below models--x.
  bool follow_links = false;
};

// A name that may occur inside an untrusted file: [A-Za-z0-9._-]{1,255}, not "." or "..". Kind
// input; `origin` opens the message.
absl::Status CheckBasename(const std::string& name, const std::string& origin);

// Opens a regular file and reports its size under the open descriptor.
absl::StatusOr<UniqueFd> OpenForReading(const std::string& path, const ReadOptions& options,
                                        int64_t* size);
// The whole file; refuses more than max_bytes before it allocates.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes,
                                     const ReadOptions& options = {});

bool PathExists(const std::string& path);
bool IsFolder(const std::string& path);
// Names in a folder, sorted, without "." and "..".
absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& path);
// "a/b" from "a" and "b"; "b" when `folder` is empty.
std::string JoinPath(const std::string& folder, const std::string& name);
// The last component; the folder part ("." when there is none).
std::string Basename(const std::string& path);
std::string FolderOf(const std::string& path);

// Makes the folder and its parents, mode 0750 cut by the umask. OK when it exists.
absl::Status MakeDirs(const std::string& path);
// Removes a file or a tree without following links. OK when it does not exist.
absl::Status RemoveTree(const std::string& path);
// Copies the regular files of a folder; `to` appears complete, in place of what is there.
absl::Status CopyFolder(const std::string& from, const std::string& to);
absl::Status RenamePath(const std::string& from, const std::string& to);
// fsync of a folder, so that renames in it last.
absl::Status SyncFolder(const std::string& path);

// A file under its final name that must not exist yet (O_EXCL, no links, mode 0640 cut by the
// umask). Every result counts; EINTR and short writes are continued. Without Finish nothing is
// promised about what it holds.
class NewFile {
 public:
  static absl::StatusOr<NewFile> Create(const std::string& path);
  // Room for `size` bytes where the file system can reserve it.
  absl::Status Reserve(int64_t size);
  absl::Status Write(const void* data, std::size_t size);
  // fsync and close.
  absl::Status Finish();

 private:
  NewFile(std::string path, UniqueFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}
  std::string path_;
  UniqueFd fd_;
};

// A file that appears under its name complete and durable, or not at all: written to a temp file
// beside it, then fsync, rename, fsync of the folder. Without Commit the temp file is removed.
class AtomicFile {
 public:
  static absl::StatusOr<std::unique_ptr<AtomicFile>> Create(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  absl::Status Write(const void* data, std::size_t size) { return file_.Write(data, size); }
  absl::Status Commit();

 private:
  AtomicFile(std::string path, std::string temp_path, NewFile file);
  std::string path_, temp_path_;
  NewFile file_;
  bool committed_ = false;
};

absl::Status AtomicWriteFile(const std::string& path, const std::string& contents);

// An fcntl write lock, held while this object lives. It is of the process: a second lock on one
// path in the same process succeeds, and closing any other descriptor of the file drops it.
class FileLock {
 public:
  // Waits up to `wait` for another process; then kind io that names the holder's process id.
  static absl::StatusOr<std::unique_ptr<FileLock>> Acquire(const std::string& path,
                                                           absl::Duration wait);

 private:
  explicit FileLock(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace graft
