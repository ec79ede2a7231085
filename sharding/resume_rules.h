// What a run must share with the checkpoint that it goes on from (reliability.md 2.3). Pure. Used
// by the checkpointer and by `export`.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "sharding/checkpoint_writer.h"
#include "sharding/manifest.h"

namespace graft::sharding {

// Kind io naming the first keys whose values differ, with both; `origin` opens the message.
absl::Status CompareFixed(const TextMap& saved, const TextMap& current, const std::string& origin);

// The saved parameters against the job's, by name and shape: kind io listing missing, extra and
// resized names. `expected`: sorted by name.
absl::Status CompareParameters(const Manifest& saved, const std::vector<ParameterShape>& expected,
                               const std::string& origin);

}  // namespace graft::sharding
