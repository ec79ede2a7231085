// A RoBERTa-family model as the prompt encoder of idpg and lopa (methods.md 10): reads
// MicroBatch::prompts, gives one vector per sample. Built on the stage that has the embedding.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "adapters/prompt_encoder.h"
#include "models/weights/weight_source.h"

namespace graft::sharding {

// What the folder holds, from config.json and a hash of the weights. Kind input: no RoBERTa.
absl::StatusOr<adapters::EncoderFacts> ReadEncoderFacts(const std::string& folder,
                                                        bool follow_links);
// Builds it from the weights of its folder: frozen in `dtype`, without gradient; or with float32
// leaves that are trained. No dropout. Kind input.
absl::StatusOr<std::shared_ptr<adapters::PromptEncoder>> LoadModelEncoder(
    const adapters::PromptEncoderChoice& choice, models::WeightSource& weights, torch::Dtype dtype,
    torch::Device device = torch::kCPU);

}  // namespace graft::sharding
