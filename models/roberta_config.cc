#include "models/roberta_config.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status.h"
#include "models/config_limits.h"

namespace graft::models {
namespace {

using nlohmann::json;

absl::Status ReadPositions(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(const int64_t padding,
                         GetIntOr(config, "pad_token_id", 1, 0, kMaxVocab, origin));
  GRAFT_ASSIGN_OR_RETURN(out->position_rows, GetIntOr(config, "max_position_embeddings", 512, 1,
                                                      kMaxPositions, origin));
  out->position_offset = padding + 1;
  out->max_positions = out->position_rows - out->position_offset;
  if (out->max_positions > 0) return absl::OkStatus();
  return InputError(absl::StrCat(origin, ": max_position_embeddings: found ", out->position_rows,
                                 ", must be above pad_token_id + 1, ", out->position_offset));
}

}  // namespace

void SetRobertaFacts(ModelConfig* config) {
  config->gated_ffn = false;
  config->layer_norm = true;
  config->causal = false;
  config->qkv_bias = config->attention_out_bias = config->mlp_bias = true;
  config->num_kv_heads = config->num_heads;
  config->head_dim = config->hidden_size / config->num_heads;
  config->tie_word_embeddings = false;  // the language-model head is not used
}

absl::Status ReadRobertaConfig(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(out->hidden_size, GetInt(config, "hidden_size", 1, kMaxHidden, origin));
  GRAFT_ASSIGN_OR_RETURN(out->num_layers,
                         GetInt(config, "num_hidden_layers", 1, kMaxLayers, origin));
  GRAFT_ASSIGN_OR_RETURN(out->num_heads,
                         GetInt(config, "num_attention_heads", 1, kMaxHeads, origin));
  if (out->hidden_size % out->num_heads != 0) {
    return InputError(absl::StrCat(origin, ": num_attention_heads: found ", out->num_heads,
                                   ", must divide hidden_size, ", out->hidden_size));
  }
  GRAFT_ASSIGN_OR_RETURN(out->intermediate_size,
                         GetInt(config, "intermediate_size", 1, kMaxIntermediate, origin));
  GRAFT_ASSIGN_OR_RETURN(out->vocab_size, GetInt(config, "vocab_size", 1, kMaxVocab, origin));
  GRAFT_ASSIGN_OR_RETURN(out->token_types,
                         GetIntOr(config, "type_vocab_size", 2, 1, kMaxVocab, origin));
  GRAFT_RETURN_IF_ERROR(ReadPositions(config, origin, out));
  GRAFT_ASSIGN_OR_RETURN(out->norm_eps,
                         GetRealOr(config, "layer_norm_eps", 1e-12, 1e-30, 1.0, origin));
  GRAFT_ASSIGN_OR_RETURN(out->initializer_range,
                         GetRealOr(config, "initializer_range", 0.02, 0.0, 1.0, origin));
  GRAFT_ASSIGN_OR_RETURN(out->activation, ReadActivation(config, "hidden_act", "gelu", origin));
  GRAFT_ASSIGN_OR_RETURN(const bool decoder, GetBoolOr(config, "is_decoder", false, origin));
  if (decoder) {
    return InputError(absl::StrCat(origin, ": is_decoder: found true, only false is supported"));
  }
  SetRobertaFacts(out);
  return absl::OkStatus();
}

}  // namespace graft::models
