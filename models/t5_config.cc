#include "models/t5_config.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"
#include "models/config_limits.h"

namespace graft::models {
namespace {

using nlohmann::json;

constexpr int64_t kMaxDistance = 4096;

absl::Status ReadLayers(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(out->encoder_layers, GetInt(config, "num_layers", 1, kMaxLayers, origin));
  GRAFT_ASSIGN_OR_RETURN(
      const int64_t decoder_layers,
      GetIntOr(config, "num_decoder_layers", out->encoder_layers, 1, kMaxLayers, origin));
  out->num_layers = out->encoder_layers + decoder_layers;
  GRAFT_ASSIGN_OR_RETURN(out->hidden_size, GetInt(config, "d_model", 1, kMaxHidden, origin));
  GRAFT_ASSIGN_OR_RETURN(out->num_heads, GetInt(config, "num_heads", 1, kMaxHeads, origin));
  GRAFT_ASSIGN_OR_RETURN(out->head_dim, GetInt(config, "d_kv", 1, kMaxHeadDim, origin));
  GRAFT_ASSIGN_OR_RETURN(out->intermediate_size,
                         GetInt(config, "d_ff", 1, kMaxIntermediate, origin));
  GRAFT_ASSIGN_OR_RETURN(out->vocab_size, GetInt(config, "vocab_size", 1, kMaxVocab, origin));
  return absl::OkStatus();
}

absl::Status ReadRelativePositions(const json& config, const std::string& origin,
                                   ModelConfig* out) {
  // An encoder halves the buckets by direction, and again into exact and growing ones.
  GRAFT_ASSIGN_OR_RETURN(out->relative_buckets, GetIntOr(config, "relative_attention_num_buckets",
                                                         32, 4, kMaxDistance, origin));
  GRAFT_ASSIGN_OR_RETURN(
      out->relative_max_distance,
      GetIntOr(config, "relative_attention_max_distance", 128, 1, kMaxDistance, origin));
  if (out->relative_max_distance > out->relative_buckets / 2) return absl::OkStatus();
  return InputError(absl::StrCat(
      origin, ": relative_attention_max_distance: found ", out->relative_max_distance,
      ", must be above half of relative_attention_num_buckets, ", out->relative_buckets));
}

// transformers writes what it derives from feed_forward_proj beside it.
absl::Status ReadFeedForward(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(const std::string name,
                         GetStringOr(config, "feed_forward_proj", "relu", origin));
  if (name != "relu" && name != "gated-gelu") {
    return InputError(absl::StrCat(origin, ": feed_forward_proj: found \"", Printable(name),
                                   "\", supported are relu, gated-gelu"));
  }
  out->gated_ffn = name == "gated-gelu";
  out->activation = out->gated_ffn ? "gelu_new" : "relu";
  GRAFT_ASSIGN_OR_RETURN(const std::string activation,
                         GetStringOr(config, "dense_act_fn", out->activation, origin));
  if (activation != out->activation) {
    return InputError(absl::StrCat(origin, ": dense_act_fn: found \"", Printable(activation),
                                   "\", feed_forward_proj ", name, " has ", out->activation));
  }
  GRAFT_ASSIGN_OR_RETURN(const bool gated,
                         GetBoolOr(config, "is_gated_act", out->gated_ffn, origin));
  if (gated == out->gated_ffn) return absl::OkStatus();
  return InputError(absl::StrCat(origin, ": is_gated_act: contradicts feed_forward_proj, ", name));
}

// transformers 4: an untied head is also an unscaled one. transformers 5 says tie_word_embeddings
// true for every T5 and writes scale_decoder_outputs; false stands for a v1.1 head.
absl::Status ReadHead(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(const bool tied, GetBoolOr(config, "tie_word_embeddings", true, origin));
  GRAFT_ASSIGN_OR_RETURN(out->scale_decoder_outputs,
                         GetBoolOr(config, "scale_decoder_outputs", tied, origin));
  if (out->scale_decoder_outputs && !tied) {
    return InputError(absl::StrCat(
        origin, ": scale_decoder_outputs: found true, but tie_word_embeddings is false"));
  }
  out->tie_word_embeddings = out->scale_decoder_outputs;
  GRAFT_ASSIGN_OR_RETURN(out->decoder_start_token_id,
                         GetIntOr(config, "decoder_start_token_id", 0, 0, kMaxVocab, origin));
  if (out->decoder_start_token_id < out->vocab_size) return absl::OkStatus();
  return InputError(absl::StrCat(origin, ": decoder_start_token_id: found ",
                                 out->decoder_start_token_id, ", must be below vocab_size, ",
                                 out->vocab_size));
}

}  // namespace

void SetT5Facts(ModelConfig* config) {
  config->num_kv_heads = config->num_heads;
  config->max_positions = kMaxPositions;
}

absl::Status ReadT5Config(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_RETURN_IF_ERROR(ReadLayers(config, origin, out));
  GRAFT_RETURN_IF_ERROR(ReadRelativePositions(config, origin, out));
  GRAFT_RETURN_IF_ERROR(ReadFeedForward(config, origin, out));
  GRAFT_RETURN_IF_ERROR(ReadHead(config, origin, out));
  GRAFT_ASSIGN_OR_RETURN(out->norm_eps,
                         GetRealOr(config, "layer_norm_epsilon", 1e-6, 1e-30, 1.0, origin));
  GRAFT_ASSIGN_OR_RETURN(const bool pair, GetBoolOr(config, "is_encoder_decoder", true, origin));
  if (!pair) {
    return InputError(
        absl::StrCat(origin, ": is_encoder_decoder: found false, T5 is read with both stacks"));
  }
  SetT5Facts(out);
  return absl::OkStatus();
}

}  // namespace graft::models
