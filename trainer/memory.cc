#include "trainer/memory.h"

#include <sys/resource.h>

namespace graft::trainer {

int64_t PeakResidentBytes() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;  // Linux counts in KiB
}

}  // namespace graft::trainer
