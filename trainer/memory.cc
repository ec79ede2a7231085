#include "trainer/memory.h"

#include <malloc.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "absl/strings/match.h"

namespace graft::trainer {

namespace {

// Code, operator tables and kernels made at run time that the first steps of a run add, and the
// stacks of threads: measured as what a run of the tiny models has above ProgramBytes' first part.
constexpr int64_t kFirstUseBytes = int64_t{32} << 20;

// A line of /proc/self/status, "VmHWM:   123 kB"; 0 = the kernel has none. The resource usage that
// getrusage reports begins with that of the process that started this one.
int64_t StatusBytes(const char* field) {
  std::ifstream lines("/proc/self/status");
  for (std::string line; std::getline(lines, line);) {
    if (!absl::StartsWith(line, field)) continue;
    int64_t kibibytes = 0;
    const std::string number = line.substr(std::strlen(field));
    return std::sscanf(number.c_str(), " %" SCNd64, &kibibytes) == 1 ? kibibytes * 1024 : 0;
  }
  return 0;
}

}  // namespace

int64_t PeakResidentBytes() { return StatusBytes("VmHWM:"); }
int64_t ResidentBytes() { return StatusBytes("VmRSS:"); }
int64_t ProgramBytes() { return ResidentBytes() + kFirstUseBytes; }

void KeepFreedMemory() {
#ifdef M_MMAP_MAX
  constexpr int kTopPad = 64 << 20;
  ::mallopt(M_MMAP_MAX, 0);
  ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  ::mallopt(M_TOP_PAD, kTopPad);
#endif
}

}  // namespace graft::trainer
