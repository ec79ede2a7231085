// Adapter tensors by name, across the stages: collected on one rank to write an adapter folder,
// handed out from one rank to start from one. Used by the trainer, eval and export. So is what
// quantisation did to the stages' weights.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "absl/status/status.h"
#include "adapters/adapter_set.h"
#include "comm/communicator.h"
#include "models/weights/quantize.h"

namespace graft::sharding {

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

// Copies (float32, CPU) of all stages' parameters on stage 0, by layer, then in the order of the
// method; empty on the others. All ranks of the pipeline group must call. Throws kind peer.
NamedTensors GatherParameters(comm::Communicator& pipeline, const adapters::AdapterSet& set);
// The same of `values` (P), one for each number of the set, in its layout.
NamedTensors GatherValues(comm::Communicator& pipeline, const adapters::AdapterSet& set,
                          const torch::Tensor& values);

// Each rank takes its own parameters out of rank 0's `tensors` (ignored on the others). All ranks
// of `comm` must call and get the same status: errors as of AdapterSet::Load. Throws kind peer.
absl::Status ScatterParameters(comm::Communicator& comm, const NamedTensors& tensors,
                               adapters::AdapterSet& set);

// Of all stages, the same on every rank: the matrices of the model in the order of the stages. All
// ranks of the pipeline group must call.
models::QuantizationReport GatherQuantization(comm::Communicator& pipeline,
                                              const models::QuantizationReport& mine);

}  // namespace graft::sharding
