#include "base/mapped_file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/text.h"

namespace graft {
namespace {

// What the SIGBUS handler may read: plain memory, no locks, no allocation.
struct MappingRecord {
  std::atomic<uintptr_t> begin{0};  // 0 = free
  std::atomic<std::size_t> size{0};
  char path[512] = {};
};
constexpr int kMaxRecords = 4096;
MappingRecord g_records[kMaxRecords];

int AddRecord(const void* data, std::size_t size, const std::string& path) {
  static constexpr uintptr_t kReserved = 1;
  for (int slot = 0; slot < kMaxRecords; ++slot) {
    uintptr_t expected = 0;
    MappingRecord& record = g_records[slot];
    if (!record.begin.compare_exchange_strong(expected, kReserved)) continue;
    const std::string shown = Printable(path, sizeof(record.path) - 1);
    std::memcpy(record.path, shown.c_str(), shown.size() + 1);
    record.size.store(size);
    record.begin.store(reinterpret_cast<uintptr_t>(data));
    return slot;
  }
  return -1;  // the mapping works; only its name would be missing from a SIGBUS message
}

void WriteAll(const char* text) {
  std::size_t left = std::strlen(text);
  while (left > 0) {
    const ssize_t count = ::write(STDERR_FILENO, text, left);
    if (count <= 0) return;
    text += count;
    left -= static_cast<std::size_t>(count);
  }
}

void OnBusError(int signal, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const MappingRecord& record : g_records) {
    const uintptr_t begin = record.begin.load();
    // The last page reaches past the end of the file.
    if (begin <= 1 || address < begin || address - begin >= record.size.load() + 65536) continue;
    WriteAll("graft: error: io: ");
    WriteAll(record.path);
    WriteAll(": could not be read any more, it became shorter or its disk failed\n");
    ::_exit(ExitCode(ErrorKind::kIo));
  }
  // Not a mapped file: the default action on return.
  std::signal(signal, SIG_DFL);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path,
                                                             const ReadOptions& options) {
  int64_t size = 0;
  GRAFT_ASSIGN_OR_RETURN(const UniqueFd fd, OpenForReading(path, options, &size));
  std::unique_ptr<MappedFile> file(new MappedFile());
  file->path_ = path;
  if (size == 0) return file;
  void* const data =
      ::mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) {
    return IoError(absl::StrCat(Printable(path, 512), ": mapping ", size,
                                " bytes failed: ", std::strerror(errno)));
  }
  file->data_ = static_cast<const uint8_t*>(data);
  file->size_ = static_cast<std::size_t>(size);
  file->slot_ = AddRecord(data, file->size_, path);
  return file;
}

MappedFile::~MappedFile() {
  if (slot_ >= 0) g_records[slot_].begin.store(0);
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

void DropPages(const void* data, std::size_t size) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + size) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void InstallBusErrorHandler() {
  struct sigaction action {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace graft
