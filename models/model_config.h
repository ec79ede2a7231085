// What config.json of an HF model folder says, as plain numbers. No LibTorch. Untrusted: every integer is checked against a stated
// range (reliability.md 6), a key that changes the mathematics and is not supported is an error, never ignored.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace graft::models {

// Rotary embedding: `type` default | linear | dynamic | llama3 | yarn, as transformers 4 (`rope_theta` + `rope_scaling`) and 5
// (`rope_parameters`) write it.
struct RopeConfig {
  std::string type = "default";
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0;      // llama3
  double high_freq_factor = 4.0;     // llama3
  int64_t original_max_positions = 0;  // llama3, yarn, dynamic; 0 = max_positions
  double beta_fast = 32.0;           // yarn
  double beta_slow = 1.0;            // yarn
  std::optional<double> attention_factor;  // yarn
  std::optional<double> mscale, mscale_all_dim;  // yarn
  bool truncate = true;              // yarn
};

struct ModelConfig {
  std::string model_type;      // "llama", "mistral", "qwen2", "gpt2", "roberta", "t5"
  std::string architecture;    // first of `architectures`, may be empty
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  double norm_eps = 1e-6;
  double initializer_range = 0.02;
  double attention_dropout = 0.0;  // acts only with adapter.backbone_dropout: model
  bool tie_word_embeddings = false;
  bool qkv_bias = false;       // q, k, v
  bool attention_out_bias = false;
  bool mlp_bias = false;
  std::string activation = "silu";
  // What the architecture fixes without a key in config.json.
  bool gated_ffn = true;       // act(gate) * up, else act(up)
  bool layer_norm = false;     // LayerNorm with a bias, else RMSNorm
  bool causal = true;          // false: an encoder, which sees in both directions and has no language-model head here
  int64_t position_rows = 0;   // learned positions: rows of their table; 0 = rotary or relative
  int64_t position_offset = 0; // row of the first position (RoBERTa: padding id + 1)
  // Encoder-decoder models: the first layers, which are the encoder's; 0 = the model has no encoder of its own.
  int64_t encoder_layers = 0;
  int64_t relative_buckets = 0;       // relative position bias: rows of its table, one table for each stack
  int64_t relative_max_distance = 0;  // from here on all distances share a row
  bool scale_decoder_outputs = false; // times hidden_size^-0.5 in front of the head
  int64_t decoder_start_token_id = 0; // first input of the decoder
  int64_t token_types = 0;     // rows of the token-type table; every token is of type 0
  RopeConfig rope;             // when position_rows is 0
  // 0 = full attention; else keys at distance >= window are masked. One entry per layer.
  std::vector<int64_t> sliding_window;
  std::string dtype;           // of the folder: "float32", "bfloat16", "float16" or empty
  std::vector<int64_t> eos_token_ids;
  std::optional<int64_t> bos_token_id, pad_token_id;

  int64_t q_width() const { return num_heads * head_dim; }
  int64_t kv_width() const { return num_kv_heads * head_dim; }
  bool has_encoder() const { return encoder_layers > 0; }
  bool is_decoder_layer(int64_t layer) const { return has_encoder() && layer >= encoder_layers; }
  // Tokens that one sequence may have: dynamic RoPE serves `factor` times the trained positions.
  int64_t longest_sequence() const {
    return rope.type == "dynamic" ? static_cast<int64_t>(static_cast<double>(max_positions) * rope.factor)
                                  : max_positions;
  }
};

// Reads <folder>/config.json. Errors: kind input naming file and key; an unknown model_type lists the supported ones.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& folder);
// From the text of a config.json; `origin` names it in errors.
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json, const std::string& origin);
// A named shape for measurements without files: "llama-1b", "llama-8b", "llama-2-7b", ... Error kind recipe lists the names.
absl::StatusOr<ModelConfig> NamedShape(const std::string& name);

}  // namespace graft::models
