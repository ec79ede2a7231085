// Opens a prepared data set for a command: all ranks agree on the outcome, and the data set must be
// of the task's kind. Used by train, eval and generate.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "models/model_config.h"
#include "trainer/config.h"
#include "trainer/data/dataset.h"
#include "trainer/loaded_model.h"

namespace graft::trainer {

// `key` is the recipe key that names the folder ("data.train"). Hashes of the shards are verified
// by rank 0 only. All ranks of `all` must call and get the same status; kind recipe when the data
// set has another kind than the task, input as of Dataset::Open.
absl::StatusOr<std::shared_ptr<const Dataset>> OpenData(const Recipe& recipe,
                                                        const std::string& folder,
                                                        const std::string& key,
                                                        comm::Communicator& all);

// Token ids and lengths against the model, and prompts against its method: the rows of a soft
// prompt and a sample's text fit into the model's positions, and a method that reads prompts finds
// some. Kind input; names the sample. Rank-local and the same on every rank.
absl::Status CheckFitsModel(const Dataset& data, const LoadedModel& model, const std::string& key);

// Trained targets inside the prompt: a method that reads the whole prompt shows them their own
// future (methods.md 6).
int64_t CountPromptTargets(const Dataset& data);

// The data set's classes against the outputs of the model's head. As above.
absl::Status CheckOutputs(const Dataset& data, const LoadedModel& model, const std::string& key);

// What the plan reads from a data set.
WorkShape WorkShapeOf(const Dataset& data, int64_t row_length);

// Samples that a command runs: the first max_samples of the data set (0 = all).
int64_t LimitedSize(const Dataset& data, int64_t max_samples);

}  // namespace graft::trainer
