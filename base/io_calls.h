// The system calls that write: every open, write, fsync, close, rename, mkdir and unlink of
// base/file.h and of the checkpoint writer goes through here, so that a test can fail, shorten,
// record or kill at the n-th one (reliability.md 8: K2, K3, F3). Results and errno are those of the
// calls. It adds nothing of its own: no retry, no message.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace graft {

class IoCalls {
 public:
  virtual ~IoCalls() = default;
  virtual int Open(const char* path, int flags, mode_t mode);
  virtual ssize_t Read(int fd, void* data, std::size_t size);
  virtual ssize_t Write(int fd, const void* data, std::size_t size);
  // fallocate(2): reserves `size` bytes from the start.
  virtual int Reserve(int fd, int64_t size);
  virtual int Fsync(int fd);
  virtual int Close(int fd);
  virtual int Rename(const char* from, const char* to);
  virtual int MakeFolder(const char* path, mode_t mode);
  // Removes `name` below the open folder; `path` is where that is, for records only.
  virtual int RemoveAt(int folder, const char* name, int flags, const char* path);
};

// The calls in use: the system's, unless a test has put others in their place.
IoCalls& Io();
// For tests: null = the system's. The object must outlive its use.
void SetIoCalls(IoCalls* calls);

}  // namespace graft
