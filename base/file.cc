#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/io_calls.h"
#include "base/status.h"
#include "base/text.h"

namespace graft {
namespace {

constexpr mode_t kFolderMode = 0750;
constexpr mode_t kFileMode = 0640;
constexpr std::size_t kMaxPath = 512;  // bytes of a path in a message

std::string Shown(const std::string& path) { return Printable(path, kMaxPath); }

absl::Status SystemError(const std::string& path, const std::string& action, int code) {
  const std::string message =
      absl::StrCat(Shown(path), ": ", action, " failed: ", std::strerror(code));
  const bool about_the_file = code == ENOENT || code == ENOTDIR || code == ENAMETOOLONG;
  return about_the_file ? InputError(message) : IoError(message);
}

absl::Status WriteError(const std::string& path, const std::string& action, int code) {
  return IoError(absl::StrCat(Shown(path), ": ", action, " failed: ", std::strerror(code)));
}

std::string RealPath(const std::string& path) {
  char* const resolved = ::realpath(path.c_str(), nullptr);
  if (resolved == nullptr) return "";
  std::string result(resolved);
  std::free(resolved);
  return result;
}

// The folder below which the target of a link in `folder` must lie: the parent; in a Hugging Face
// cache the folder that holds snapshots/ and blobs/.
std::string LinkRoot(const std::string& real_folder) {
  const std::string parent = FolderOf(real_folder);
  return Basename(parent) == "snapshots" ? FolderOf(parent) : parent;
}

// The path to open for a link: its resolved target, if that is allowed.
absl::StatusOr<std::string> ResolveLink(const std::string& path, const ReadOptions& options) {
  const std::string target = RealPath(path);
  if (target.empty()) return SystemError(path, "following the link", errno);
  const std::string folder = RealPath(FolderOf(path));
  if (folder.empty()) return SystemError(path, "reading its folder", errno);
  const std::string root = LinkRoot(folder);
  const std::string below = root == "/" ? root : root + "/";
  if (!options.follow_links && !absl::StartsWith(target, below)) {
    return InputError(absl::StrCat(Shown(path), ": is a link to ", Shown(target),
                                   ", which lies outside of ", Shown(root),
                                   "; set model.follow_links: true to allow it"));
  }
  return target;
}

absl::Status RemoveContents(int fd, const std::string& path);

// Removes `name` (a file, a link, a tree) below the open folder. OK when it is not there.
absl::Status RemoveEntry(int folder, const std::string& name, const std::string& path) {
  if (Io().RemoveAt(folder, name.c_str(), 0, path.c_str()) == 0 || errno == ENOENT) {
    return absl::OkStatus();
  }
  if (errno != EISDIR && errno != EPERM) return WriteError(path, "removing it", errno);
  const UniqueFd fd(
      ::openat(folder, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return WriteError(path, "removing it", errno);
  GRAFT_RETURN_IF_ERROR(RemoveContents(fd.get(), path));
  if (Io().RemoveAt(folder, name.c_str(), AT_REMOVEDIR, path.c_str()) == 0 || errno == ENOENT) {
    return absl::OkStatus();
  }
  return WriteError(path, "removing the folder", errno);
}

int OpenRegular(const std::string& path) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  return Io().Open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0);
}

}  // namespace

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    if (valid()) Io().Close(fd_);
    fd_ = other.Release();
  }
  return *this;
}

UniqueFd::~UniqueFd() {
  if (valid()) Io().Close(fd_);
}

int UniqueFd::Release() { return std::exchange(fd_, -1); }

absl::Status CheckBasename(const std::string& name, const std::string& origin) {
  static constexpr char kAllowed[] =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  if (!name.empty() && name.size() <= 255 && name != "." && name != ".." &&
      name.find_first_not_of(kAllowed) == std::string::npos) {
    return absl::OkStatus();
  }
  return InputError(absl::StrCat(Shown(origin), ": file name \"", Printable(name),
                                 "\" is not allowed, must be 1 to 255 of A-Z a-z 0-9 . _ - in the "
                                 "same folder"));
}

absl::StatusOr<UniqueFd> OpenForReading(const std::string& path, const ReadOptions& options,
                                        int64_t* size) {
  UniqueFd fd(OpenRegular(path));
  if (!fd.valid() && errno == ELOOP) {
    GRAFT_ASSIGN_OR_RETURN(const std::string target, ResolveLink(path, options));
    fd = UniqueFd(OpenRegular(target));
  }
  if (!fd.valid()) return SystemError(path, "opening it", errno);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return SystemError(path, "reading its size", errno);
  if (!S_ISREG(info.st_mode)) {
    return InputError(absl::StrCat(Shown(path), ": is ",
                                   S_ISDIR(info.st_mode) ? "a folder" : "a device or pipe",
                                   ", must be a regular file"));
  }
  *size = static_cast<int64_t>(info.st_size);
  return fd;
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes,
                                     const ReadOptions& options) {
  int64_t size = 0;
  GRAFT_ASSIGN_OR_RETURN(const UniqueFd fd, OpenForReading(path, options, &size));
  if (size > max_bytes) {
    return InputError(
        absl::StrCat(Shown(path), ": has ", size, " bytes, at most ", max_bytes, " are allowed"));
  }
  std::string contents(static_cast<std::size_t>(size), '\0');
  std::size_t filled = 0;
  while (filled < contents.size()) {
    const ssize_t count = Io().Read(fd.get(), contents.data() + filled, contents.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return SystemError(path, "reading it", errno);
    if (count == 0) {
      return IoError(absl::StrCat(Shown(path), ": became shorter while it was read"));
    }
    filled += static_cast<std::size_t>(count);
  }
  return contents;
}

bool PathExists(const std::string& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0;
}

bool IsFolder(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& path) {
  DIR* const folder = ::opendir(path.c_str());
  if (folder == nullptr) return SystemError(path, "listing the folder", errno);
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(folder)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
    errno = 0;
  }
  const int code = errno;
  ::closedir(folder);
  if (code != 0) return SystemError(path, "listing the folder", code);
  std::sort(names.begin(), names.end());
  return names;
}

std::string JoinPath(const std::string& folder, const std::string& name) {
  if (folder.empty()) return name;
  return folder.back() == '/' ? folder + name : absl::StrCat(folder, "/", name);
}

std::string Basename(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

std::string FolderOf(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

absl::Status MakeDirs(const std::string& path) {
  for (std::size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const std::string part = path.substr(0, slash);
    if (!IsFolder(part) && Io().MakeFolder(part.c_str(), kFolderMode) != 0 && errno != EEXIST) {
      return WriteError(part, "making the folder", errno);
    }
    if (slash == std::string::npos) break;
  }
  if (!IsFolder(path)) return IoError(absl::StrCat(Shown(path), ": exists and is not a folder"));
  return absl::OkStatus();
}

namespace {

// Removes what the folder behind `fd` holds, below descriptors, so that nothing outside of the tree
// can be meant. `path` is for messages.
absl::Status RemoveContents(int fd, const std::string& path) {
  const int copy = ::dup(fd);
  DIR* const folder = copy < 0 ? nullptr : ::fdopendir(copy);
  if (folder == nullptr) {
    if (copy >= 0) ::close(copy);
    return WriteError(path, "listing the folder", errno);
  }
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(folder)) names.emplace_back(entry->d_name);
  ::closedir(folder);
  for (const std::string& name : names) {
    if (name == "." || name == "..") continue;
    GRAFT_RETURN_IF_ERROR(RemoveEntry(fd, name, JoinPath(path, name)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RemoveTree(const std::string& path) {
  const std::string folder = FolderOf(path);
  const UniqueFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) {
    return errno == ENOENT ? absl::OkStatus() : WriteError(folder, "opening the folder", errno);
  }
  return RemoveEntry(fd.get(), Basename(path), path);
}

absl::Status CopyFolder(const std::string& from, const std::string& to) {
  const std::string temporary = JoinPath(FolderOf(to), absl::StrCat(".", Basename(to), ".tmp"));
  GRAFT_RETURN_IF_ERROR(RemoveTree(temporary));
  GRAFT_RETURN_IF_ERROR(MakeDirs(temporary));
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(from));
  for (const std::string& name : names) {
    std::error_code error;
    std::filesystem::copy_file(JoinPath(from, name), JoinPath(temporary, name), error);
    if (error) return WriteError(JoinPath(from, name), "copying it", error.value());
  }
  GRAFT_RETURN_IF_ERROR(RemoveTree(to));
  GRAFT_RETURN_IF_ERROR(RenamePath(temporary, to));
  return SyncFolder(FolderOf(to));
}

absl::Status RenamePath(const std::string& from, const std::string& to) {
  if (Io().Rename(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  return WriteError(from, absl::StrCat("renaming it to ", Shown(to)), errno);
}

absl::Status SyncFolder(const std::string& path) {
  const UniqueFd fd(Io().Open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0));
  if (!fd.valid()) return WriteError(path, "opening the folder", errno);
  if (Io().Fsync(fd.get()) != 0) return WriteError(path, "fsync of the folder", errno);
  return absl::OkStatus();
}

absl::StatusOr<NewFile> NewFile::Create(const std::string& path) {
  UniqueFd fd(
      Io().Open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, kFileMode));
  if (!fd.valid()) return WriteError(path, "creating it", errno);
  return NewFile(path, std::move(fd));
}

absl::Status NewFile::Reserve(int64_t size) {
  // An empty reservation is EINVAL; a file system that cannot reserve finds out while writing.
  if (size == 0 || Io().Reserve(fd_.get(), size) == 0) return absl::OkStatus();
  if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINTR) return absl::OkStatus();
  return WriteError(path_, absl::StrCat("reserving ", size, " bytes"), errno);
}

absl::Status NewFile::Write(const void* data, std::size_t size) {
  const char* next = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count = Io().Write(fd_.get(), next, size);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return WriteError(path_, "writing it", errno);
    next += count;
    size -= static_cast<std::size_t>(count);
  }
  return absl::OkStatus();
}

absl::Status NewFile::Finish() {
  int result = Io().Fsync(fd_.get());
  while (result != 0 && errno == EINTR) result = Io().Fsync(fd_.get());
  if (result != 0) return WriteError(path_, "fsync", errno);
  // After EINTR the descriptor is closed on Linux; the data were safe before.
  if (Io().Close(fd_.Release()) != 0 && errno != EINTR) {
    return WriteError(path_, "closing it", errno);
  }
  return absl::OkStatus();
}

AtomicFile::AtomicFile(std::string path, std::string temp_path, NewFile file)
    : path_(std::move(path)), temp_path_(std::move(temp_path)), file_(std::move(file)) {}

AtomicFile::~AtomicFile() {
  if (!committed_) RemoveTree(temp_path_).IgnoreError();
}

absl::StatusOr<std::unique_ptr<AtomicFile>> AtomicFile::Create(const std::string& path) {
  const std::string temp = absl::StrCat(path, ".tmp-", ::getpid());
  // A file of that name can only be the rest of a killed process that had the same id.
  GRAFT_RETURN_IF_ERROR(RemoveTree(temp));
  GRAFT_ASSIGN_OR_RETURN(NewFile file, NewFile::Create(temp));
  return std::unique_ptr<AtomicFile>(new AtomicFile(path, temp, std::move(file)));
}

absl::Status AtomicFile::Commit() {
  GRAFT_RETURN_IF_ERROR(file_.Finish());
  GRAFT_RETURN_IF_ERROR(RenamePath(temp_path_, path_));
  committed_ = true;
  return SyncFolder(FolderOf(path_));
}

absl::Status AtomicWriteFile(const std::string& path, const std::string& contents) {
  GRAFT_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> file, AtomicFile::Create(path));
  GRAFT_RETURN_IF_ERROR(file->Write(contents.data(), contents.size()));
  return file->Commit();
}

absl::StatusOr<std::unique_ptr<FileLock>> FileLock::Acquire(const std::string& path,
                                                            absl::Duration wait) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, kFileMode));
  if (!fd.valid()) return WriteError(path, "opening the lock", errno);
  const absl::Time give_up = absl::Now() + wait;
  for (;;) {
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    if (::fcntl(fd.get(), F_SETLK, &lock) == 0) {
      return std::unique_ptr<FileLock>(new FileLock(std::move(fd)));
    }
    if (errno != EACCES && errno != EAGAIN) return WriteError(path, "locking it", errno);
    if (absl::Now() >= give_up) {
      const bool known = ::fcntl(fd.get(), F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
      return IoError(
          absl::StrCat(Shown(path), ": is locked by another run",
                       known ? absl::StrCat(" (process ", lock.l_pid, ")") : std::string(),
                       "; wait for it or choose another output folder"));
    }
    absl::SleepFor(absl::Milliseconds(50));
  }
}

}  // namespace graft
