#include "models/t5_config.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"
#include "models/config_limits.h"
#include "models/weights/safetensors.h"

namespace graft::models {
namespace {

using nlohmann::json;

absl::Status ReadSizes(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(out->hidden_size, GetInt(config, "d_model", 1, kMaxHidden, origin));
  GRAFT_ASSIGN_OR_RETURN(out->head_dim, GetInt(config, "d_kv", 1, kMaxHeadDim, origin));
  GRAFT_ASSIGN_OR_RETURN(out->intermediate_size,
                         GetInt(config, "d_ff", 1, kMaxIntermediate, origin));
  GRAFT_ASSIGN_OR_RETURN(out->num_heads, GetInt(config, "num_heads", 1, kMaxHeads, origin));
  GRAFT_ASSIGN_OR_RETURN(out->vocab_size, GetInt(config, "vocab_size", 1, kMaxVocab, origin));
  GRAFT_ASSIGN_OR_RETURN(out->encoder_layers, GetInt(config, "num_layers", 1, kMaxLayers, origin));
  GRAFT_ASSIGN_OR_RETURN(
      const int64_t decoder_layers,
      GetIntOr(config, "num_decoder_layers", out->encoder_layers, 1, kMaxLayers, origin));
  out->num_layers = out->encoder_layers + decoder_layers;
  return absl::OkStatus();
}

absl::Status ReadBias(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(
      out->relative_buckets,
      GetIntOr(config, "relative_attention_num_buckets", 32, 4, 65'536, origin));
  GRAFT_ASSIGN_OR_RETURN(
      out->relative_distance,
      GetIntOr(config, "relative_attention_max_distance", 128, 1, kMaxPositions, origin));
  // The decoder's buckets are exact up to half of their number, and logarithmic behind it.
  if (out->relative_distance > out->relative_buckets / 2) return absl::OkStatus();
  return InputError(absl::StrCat(origin, ": relative_attention_max_distance: found ",
                                 out->relative_distance, ", must be above half of ",
                                 "relative_attention_num_buckets, ", out->relative_buckets / 2));
}

absl::Status ReadFeedForward(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(const std::string name,
                         GetStringOr(config, "feed_forward_proj", "relu", origin));
  out->gated_ffn = name == "gated-gelu";
  out->activation = out->gated_ffn ? "gelu_new" : name;
  if (out->gated_ffn || name == "relu") return absl::OkStatus();
  return InputError(absl::StrCat(origin, ": feed_forward_proj: found \"", Printable(name),
                                 "\", supported are relu, gated-gelu"));
}

}  // namespace

void SetT5Facts(ModelConfig* config) {
  config->num_kv_heads = config->num_heads;
  config->max_positions = kMaxPositions;  // relative positions have no end
}

absl::Status ReadT5Config(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_RETURN_IF_ERROR(ReadSizes(config, origin, out));
  GRAFT_RETURN_IF_ERROR(ReadBias(config, origin, out));
  GRAFT_RETURN_IF_ERROR(ReadFeedForward(config, origin, out));
  GRAFT_ASSIGN_OR_RETURN(out->norm_eps,
                         GetRealOr(config, "layer_norm_epsilon", 1e-6, 1e-30, 1.0, origin));
  GRAFT_ASSIGN_OR_RETURN(out->tie_word_embeddings,
                         GetBoolOr(config, "tie_word_embeddings", true, origin));
  GRAFT_ASSIGN_OR_RETURN(
      out->scale_head_input,
      GetBoolOr(config, "scale_decoder_outputs", out->tie_word_embeddings, origin));
  GRAFT_ASSIGN_OR_RETURN(const int64_t padding,
                         GetIntOr(config, "pad_token_id", 0, 0, kMaxVocab, origin));
  GRAFT_ASSIGN_OR_RETURN(
      out->decoder_start_token,
      GetIntOr(config, "decoder_start_token_id", padding, 0, out->vocab_size - 1, origin));
  SetT5Facts(out);
  return absl::OkStatus();
}

absl::Status SettleT5Head(const std::string& folder, ModelConfig* config) {
  if (config->model_type != "t5") return absl::OkStatus();
  const absl::StatusOr<std::shared_ptr<WeightFolder>> weights =
      WeightFolder::Open(folder, SafetensorsFile::Options{.follow_links = true});
  if (!weights.ok()) return absl::OkStatus();  // `plan` needs none; whoever loads says what is wrong
  const bool own_head = (*weights)->Has("lm_head.weight");
  // Old v1.0 folders hold a copy of the tied matrix: scaled outputs mean tied.
  config->tie_word_embeddings = config->scale_head_input ? config->tie_word_embeddings : !own_head;
  return absl::OkStatus();
}

}  // namespace graft::models
