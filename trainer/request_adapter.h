// What a method makes of one request, as an adapter that knows nothing of the method: the rows of a
// soft prompt (lopa, idpg) as PROMPT_TUNING, the scales of para as IA3 (methods.md 6, 9, 10). So
// any server of those types answers the request without the method's own networks. Used by
// `prompt`.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>
#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "trainer/data/dataset.h"
#include "trainer/loaded_model.h"

namespace graft::trainer {

struct RequestAdapter {
  nlohmann::json config;  // adapter_config.json
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
};

// Error kind recipe for a method that makes nothing of a request, and for a model cut into stages.
absl::Status CheckMakesRequestAdapters(const LoadedModel& model);

// Of sample `index`'s prompt; its other tokens have no influence. After the check above, on a rank
// that holds the whole model. Kind input, naming the sample, for an empty prompt.
absl::StatusOr<RequestAdapter> MakeRequestAdapter(LoadedModel& model, const Dataset& data,
                                                  int64_t index);

}  // namespace graft::trainer
