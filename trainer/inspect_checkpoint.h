// `graft inspect` on a checkpoint: what it is, and that every byte of it is what was saved. No
// LibTorch, no model, no data set.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace graft::trainer {

// Lines for people. Kind input naming the first difference when it is not valid.
absl::StatusOr<std::string> DescribeCheckpoint(const std::string& folder);

}  // namespace graft::trainer
