#include "base/io_calls.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>

namespace graft {
namespace {

std::atomic<IoCalls*> g_calls{nullptr};

}  // namespace

int IoCalls::Open(const char* path, int flags, mode_t mode) { return ::open(path, flags, mode); }

ssize_t IoCalls::Read(int fd, void* data, std::size_t size) { return ::read(fd, data, size); }

ssize_t IoCalls::Write(int fd, const void* data, std::size_t size) {
  return ::write(fd, data, size);
}

int IoCalls::Reserve(int fd, int64_t size) { return ::fallocate(fd, 0, 0, size); }

int IoCalls::Fsync(int fd) { return ::fsync(fd); }

int IoCalls::Close(int fd) { return ::close(fd); }

int IoCalls::Rename(const char* from, const char* to) { return ::rename(from, to); }

int IoCalls::MakeFolder(const char* path, mode_t mode) { return ::mkdir(path, mode); }

int IoCalls::RemoveAt(int folder, const char* name, int flags, const char*) {
  return ::unlinkat(folder, name, flags);
}

IoCalls& Io() {
  static IoCalls system;
  IoCalls* const calls = g_calls.load(std::memory_order_acquire);
  return calls == nullptr ? system : *calls;
}

void SetIoCalls(IoCalls* calls) { g_calls.store(calls, std::memory_order_release); }

}  // namespace graft
