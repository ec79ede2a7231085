#include "trainer/memory.h"

#include <malloc.h>
#include <sys/resource.h>

#include <limits>

namespace graft::trainer {
namespace {

bool keeps_freed_memory = false;  // set once, by main

// Blocks of 1 MiB and more come from the system and go back to it; or none do.
void SetSystemBlocks(bool wanted) {
#ifdef M_MMAP_MAX
  constexpr int kSmallest = 1 << 20, kUsualNumber = 1 << 16;
  ::mallopt(M_MMAP_THRESHOLD, kSmallest);
  ::mallopt(M_MMAP_MAX, wanted ? kUsualNumber : 0);
#endif
}

}  // namespace

int64_t PeakResidentBytes() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;  // Linux counts in KiB
}

void KeepFreedMemory() {
#ifdef M_MMAP_MAX
  constexpr int kTopPad = 64 << 20;
  keeps_freed_memory = true;
  SetSystemBlocks(false);
  ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  ::mallopt(M_TOP_PAD, kTopPad);
#endif
}

LoadingMemory::LoadingMemory() {
  if (keeps_freed_memory) SetSystemBlocks(true);
}

LoadingMemory::~LoadingMemory() {
  if (keeps_freed_memory) SetSystemBlocks(false);
}

}  // namespace graft::trainer
