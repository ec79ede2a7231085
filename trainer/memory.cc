#include "trainer/memory.h"

#include <malloc.h>
#include <sys/resource.h>

#include <fstream>
#include <limits>

namespace graft::trainer {

int64_t PeakResidentBytes() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;  // Linux counts in KiB
}

void ResetPeakResidentBytes() { std::ofstream("/proc/self/clear_refs") << "5"; }

void KeepFreedMemory() {
#ifdef M_MMAP_MAX
  constexpr int kTopPad = 64 << 20;
  ::mallopt(M_MMAP_MAX, 0);
  ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  ::mallopt(M_TOP_PAD, kTopPad);
#endif
}

}  // namespace graft::trainer
