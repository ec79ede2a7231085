// The memory of this process: its largest size so far, as metrics report it, and how freed blocks are
// kept. Used by the trainer and by main; an embedding program that does not call KeepFreedMemory
// keeps its own ways.
#pragma once

#include <cstdint>

namespace graft::trainer {

// Bytes of the resident set, mapped pages included: the largest so far, and now.
int64_t PeakResidentBytes();
int64_t ResidentBytes();

// What the program has of its own besides model and data, for a prediction: what it has now, when
// neither is loaded, and what it will touch of its libraries when it computes.
int64_t ProgramBytes();

// Lets PeakResidentBytes begin again at what is resident now, where the system allows it.
void ResetPeakResidentBytes();

// From now on large freed blocks stay in this process for the next step. Given back to the system,
// as malloc does by default, every step pays again for a page fault per 4 KiB of activations. For
// such a heap to stay as small as what lives in it, a freed tensor's block must fit the next tensor
// of its size: LibTorch's CPU tensors are allocated so from now on. Before the first tensor.
void KeepFreedMemory();

// For its life, while a model is loaded, KeepFreedMemory holds for small blocks only. Else the
// float32 form of each matrix that is quantised would leave a hole which the next one does not fit
// into, and a quantised model would take as much memory as a float32 one.
class LoadingMemory {
 public:
  LoadingMemory();
  ~LoadingMemory();
  LoadingMemory(const LoadingMemory&) = delete;
  LoadingMemory& operator=(const LoadingMemory&) = delete;
};

}  // namespace graft::trainer
