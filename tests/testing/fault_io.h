// System calls that fail, kill or are written down (base/io_calls.h), for the fault tests of what
// writes files.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>

#include "base/io_calls.h"

namespace graft::testing {

// Puts `calls` in the place of the system's while it lives.
class ScopedIo {
 public:
  explicit ScopedIo(IoCalls* calls) { SetIoCalls(calls); }
  ~ScopedIo() { SetIoCalls(nullptr); }
  ScopedIo(const ScopedIo&) = delete;
  ScopedIo& operator=(const ScopedIo&) = delete;
};

// Counts the calls that change a file or a folder, and hands call number `at` (from 0) to a fault.
class FaultIo : public IoCalls {
 public:
  enum class Fault {
    kNone,   // only counts
    kKill,   // this process ends before the call, as by KILL
    kError,  // the call fails with `error`
    kShort,  // a write of half the bytes; nothing for other calls
  };
  FaultIo(Fault fault, int at, int error = 0) : fault_(fault), at_(at), error_(error) {}
  int count() const { return count_.load(); }
  // From the faulty call on every write fails too, as on a disk that stays full.
  void set_lasting(bool lasting) { lasting_ = lasting; }

  int Open(const char* path, int flags, mode_t mode) override {
    return Fails() ? -1 : IoCalls::Open(path, flags, mode);
  }
  ssize_t Write(int fd, const void* data, std::size_t size) override {
    if (Fails()) return -1;
    return IoCalls::Write(fd, data, shorten_ && size > 1 ? size / 2 : size);
  }
  int Reserve(int fd, int64_t size) override { return Fails() ? -1 : IoCalls::Reserve(fd, size); }
  int Fsync(int fd) override { return Fails() ? -1 : IoCalls::Fsync(fd); }
  int Close(int fd) override {
    const bool fails = Fails();
    const int error = errno;
    const int result = IoCalls::Close(fd);  // close(2) closes whatever it returns
    if (!fails) return result;
    errno = error;
    return -1;
  }
  int Rename(const char* from, const char* to) override {
    return Fails() ? -1 : IoCalls::Rename(from, to);
  }
  int MakeFolder(const char* path, mode_t mode) override {
    return Fails() ? -1 : IoCalls::MakeFolder(path, mode);
  }
  int RemoveAt(int folder, const char* name, int flags, const char* path) override {
    return Fails() ? -1 : IoCalls::RemoveAt(folder, name, flags, path);
  }

 private:
  bool Fails() {
    const int number = count_++;
    shorten_ = fault_ == Fault::kShort && number == at_;
    const bool here = number == at_ || (lasting_ && number > at_);
    if (!here || fault_ == Fault::kNone || fault_ == Fault::kShort) return false;
    if (fault_ == Fault::kKill) {
      ::kill(::getpid(), SIGKILL);
      ::pause();
    }
    errno = error_;
    return true;
  }
  const Fault fault_;
  const int at_, error_;
  bool lasting_ = false;
  std::atomic<bool> shorten_{false};
  std::atomic<int> count_{0};
};

}  // namespace graft::testing
