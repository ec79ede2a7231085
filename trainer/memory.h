// The memory of this process: its largest size so far, as metrics report it, and how freed blocks
// are kept. Used by the trainer and by main.
#pragma once

#include <cstdint>

namespace graft::trainer {

// Bytes of the resident set, mapped pages included.
int64_t PeakResidentBytes();

// Lets PeakResidentBytes begin again at what is resident now, where the system allows it.
void ResetPeakResidentBytes();

// From now on large freed blocks stay in this process for the next step. Given back to the system,
// as malloc does by default, every step pays again for a page fault per 4 KiB of activations.
void KeepFreedMemory();

}  // namespace graft::trainer
