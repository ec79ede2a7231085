// Which frozen bytes of a model somewhere else than in host memory are noted for who watches them.
// Used by the tests of that, on a device without memory and on a GPU.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "base/status.h"
#include "models/backbone.h"
#include "models/layers/relative_bias.h"
#include "tests/models/tiny_config.h"
#include "trainer/fingerprint.h"

namespace graft::trainer {

struct NotedModel {
  std::unique_ptr<models::Backbone> backbone;
  DerivedWeights derived;
  int64_t bytes = 0;  // of the copies that are still there: what layers hold
};

// A tiny model whose weights come from host memory, on `device`.
inline NotedModel LoadNoted(const std::string& model_type, models::Quantization quantize,
                            torch::Dtype dtype, torch::Device device) {
  models::ModelConfig config = models::TinyConfig(model_type, /*layers=*/2, /*hidden=*/32);
  config.tie_word_embeddings = config.scale_decoder_outputs = model_type == "t5";
  const auto weights = models::SyntheticWeights(config, /*seed=*/3);
  RecordingWeights recorded(*weights, /*prefix=*/"", /*hash_moves=*/true);
  models::BackboneOptions options;
  options.device = device;
  options.dtype = dtype;
  options.quantize = quantize;
  auto backbone =
      models::BuildBackbone(config, {0, /*num_layers=*/2, true, true}, recorded, options);
  ThrowIfError(backbone.status());
  NotedModel model{*std::move(backbone), recorded.derived()};
  for (const WatchedTensor& copy : model.derived.copies)
    model.bytes += copy.Memory().defined() ? copy.bytes() : 0;
  return model;
}

// Of LoadNoted's T5: on a device the bias of each stack also lies there by head and distance, from
// -10 to 10; it belongs to no frozen weight of its own.
inline int64_t DerivedBytes(const std::string& model_type) {
  return model_type == "t5" ? 2 * 4 * 21 * 4 : 0;
}

}  // namespace graft::trainer
