// The largest memory that this process has held so far, as metrics report it. Used by the trainer.
#pragma once

#include <cstdint>

namespace graft::trainer {

// Bytes of the resident set, mapped pages included.
int64_t PeakResidentBytes();

}  // namespace graft::trainer
