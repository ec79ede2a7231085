#include "trainer/memory.h"

#include <malloc.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include "absl/strings/match.h"

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

// An allowance for code, operator tables and kernels made at run time that the first steps of a run
// add, and the stacks of threads. Runs of the tiny models used about 22 MiB of it.
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

// CPU tensors on plain malloc. LibTorch's own allocator asks for aligned blocks, and glibc (2.36)
// searches room for an aligned block plus the alignment: the hole that a tensor of the same size
// has left is a few bytes too small, so a third of a step's heap was holes. Here equal sizes are
// equal requests. Alignment as LibTorch's; what malloc returned stands in front of the block.
class SameSizeAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &Free, c10::kCPU};
    char* const raw = static_cast<char*>(std::malloc(bytes + kAlignment + sizeof(void*)));
    TORCH_CHECK(raw != nullptr, "SameSizeAllocator: can't allocate memory: you tried to allocate ",
                bytes, " bytes");
    const auto first = reinterpret_cast<std::uintptr_t>(raw) + sizeof(void*);
    char* const block = reinterpret_cast<char*>((first + kAlignment - 1) / kAlignment * kAlignment);
    reinterpret_cast<void**>(block)[-1] = raw;
    return {block, block, &Free, c10::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Free; }
  void copy_data(void* to, const void* from, std::size_t count) const override {
    default_copy_data(to, from, count);
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  static void Free(void* block) {
    if (block != nullptr) std::free(reinterpret_cast<void**>(block)[-1]);
  }
};

}  // namespace

int64_t PeakResidentBytes() { return StatusBytes("VmHWM:"); }
int64_t ResidentBytes() { return StatusBytes("VmRSS:"); }
int64_t ProgramBytes() { return ResidentBytes() + kFirstUseBytes; }
void ResetPeakResidentBytes() { std::ofstream("/proc/self/clear_refs") << "5"; }

void KeepFreedMemory() {
#ifdef M_MMAP_MAX
  static SameSizeAllocator allocator;
  constexpr uint8_t kAboveDefault = 1;
  c10::SetCPUAllocator(&allocator, kAboveDefault);
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
