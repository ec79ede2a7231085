// Says what a folder that graft reads or writes holds, and checks it in full: for `graft inspect`
// and for tests of bad input. Text for people; programs read the files themselves. No LibTorch.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace graft::trainer {

// Tells a model folder, a prepared data set, an adapter folder, a checkpoint and the flight
// recorders of a run apart by their files and describes it in a few lines, each ended by a line
// break. Kind input when the folder is none of them or is damaged: shapes against config.json,
// hashes and values of shards, shapes and values of adapter tensors, everything of a checkpoint.
absl::StatusOr<std::string> DescribeFolder(const std::string& path);

}  // namespace graft::trainer
