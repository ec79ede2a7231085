// The model shapes whose numbers performance.md prints.
#pragma once

#include "models/model_config.h"

namespace graft::sharding {

inline models::ModelConfig Shape(int64_t hidden, int64_t layers, int64_t heads, int64_t kv_heads,
                                 int64_t ffn, int64_t vocab, bool tied = false) {
  models::ModelConfig config;
  config.model_type = "llama";
  config.hidden_size = hidden;
  config.num_layers = layers;
  config.num_heads = heads;
  config.num_kv_heads = kv_heads;
  config.head_dim = hidden / heads;
  config.intermediate_size = ffn;
  config.vocab_size = vocab;
  config.tie_word_embeddings = tied;
  return config;
}

inline models::ModelConfig SmolLM135M() { return Shape(576, 30, 9, 3, 1536, 49152, true); }
inline models::ModelConfig Llama2_7B() { return Shape(4096, 32, 32, 32, 11008, 32000); }
inline models::ModelConfig Llama3_8B() { return Shape(4096, 32, 32, 8, 14336, 128256); }
inline models::ModelConfig Llama3_70B() { return Shape(8192, 80, 64, 8, 28672, 128256); }
inline models::ModelConfig Llama3_405B() { return Shape(16384, 126, 128, 8, 53248, 128256); }

// LoRA of rank r on all seven linears.
inline int64_t LoraParameters(const models::ModelConfig& c, int64_t r) {
  const int64_t h = c.hidden_size, q = c.q_width(), kv = c.kv_width(), f = c.intermediate_size;
  return c.num_layers * r * ((h + q) * 2 + (h + kv) * 2 + (h + f) * 3);
}

}  // namespace graft::sharding
