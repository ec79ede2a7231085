// The adapter part of inspect.h.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace graft::trainer {

// Kind input when a value is not finite, or a LoRA tensor has another rank than adapter_config.json
// says, lacks its other half, or belongs to a module that the config does not target.
absl::StatusOr<std::string> DescribeAdapter(const std::string& folder);

}  // namespace graft::trainer
