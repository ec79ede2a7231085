// Configs of models small enough for unit tests, one per family.
#pragma once

#include <string>

#include "models/gpt2_config.h"
#include "models/model_config.h"
#include "models/roberta_config.h"
#include "models/t5_config.h"

namespace graft::models {

// T5 with a gated feed-forward, the first half of `layers` the encoder's.
inline ModelConfig TinyConfig(const std::string& model_type, int64_t layers, int64_t hidden = 64) {
  ModelConfig c;
  c.model_type = model_type;
  c.hidden_size = hidden;
  c.num_layers = layers;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = hidden / 4;
  c.intermediate_size = 3 * hidden;
  c.vocab_size = 101;
  c.max_positions = 4096;
  c.initializer_range = 0.1;
  c.sliding_window.assign(static_cast<size_t>(layers), 0);
  if (model_type == "gpt2") {
    c.activation = "gelu_new";
    SetGpt2Facts(&c);
  }
  if (model_type == "roberta") {
    c.activation = "gelu";
    c.token_types = 2;
    c.position_offset = 2;
    c.position_rows = c.max_positions + 2;
    SetRobertaFacts(&c);
  }
  if (model_type == "t5") {
    c.activation = "gelu_new";
    c.encoder_layers = layers / 2;
    c.relative_buckets = 8;
    c.relative_max_distance = 10;
    SetT5Facts(&c);
  }
  return c;
}

}  // namespace graft::models
