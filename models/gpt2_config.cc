#include "models/gpt2_config.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status.h"
#include "models/config_limits.h"

namespace graft::models {

using nlohmann::json;

void SetGpt2Facts(ModelConfig* config) {
  config->gated_ffn = false;
  config->layer_norm = true;
  config->qkv_bias = config->attention_out_bias = config->mlp_bias = true;
  config->position_rows = config->max_positions;
  config->num_kv_heads = config->num_heads;
  config->head_dim = config->hidden_size / config->num_heads;
}

absl::Status ReadGpt2Config(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(out->hidden_size, GetInt(config, "n_embd", 1, kMaxHidden, origin));
  GRAFT_ASSIGN_OR_RETURN(out->num_layers, GetInt(config, "n_layer", 1, kMaxLayers, origin));
  GRAFT_ASSIGN_OR_RETURN(out->num_heads, GetInt(config, "n_head", 1, kMaxHeads, origin));
  if (out->hidden_size % out->num_heads != 0) {
    return InputError(absl::StrCat(origin, ": n_head: found ", out->num_heads,
                                   ", must divide n_embd, ", out->hidden_size));
  }
  GRAFT_ASSIGN_OR_RETURN(out->vocab_size, GetInt(config, "vocab_size", 1, kMaxVocab, origin));
  GRAFT_ASSIGN_OR_RETURN(out->max_positions,
                         GetIntOr(config, "n_positions", 1024, 1, kMaxPositions, origin));
  GRAFT_ASSIGN_OR_RETURN(out->intermediate_size, GetIntOr(config, "n_inner", 4 * out->hidden_size,
                                                          1, kMaxIntermediate, origin));
  GRAFT_ASSIGN_OR_RETURN(out->norm_eps,
                         GetRealOr(config, "layer_norm_epsilon", 1e-5, 1e-30, 1.0, origin));
  GRAFT_ASSIGN_OR_RETURN(out->initializer_range,
                         GetRealOr(config, "initializer_range", 0.02, 0.0, 1.0, origin));
  GRAFT_ASSIGN_OR_RETURN(out->tie_word_embeddings,
                         GetBoolOr(config, "tie_word_embeddings", true, origin));
  GRAFT_ASSIGN_OR_RETURN(out->activation,
                         ReadActivation(config, "activation_function", "gelu_new", origin));
  SetGpt2Facts(out);
  return absl::OkStatus();
}

}  // namespace graft::models
