#include "models/model_config.h"

#include <algorithm>
#include <iterator>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"
#include "models/config_keys.h"
#include "models/config_limits.h"
#include "models/gpt2_config.h"
#include "models/roberta_config.h"
#include "models/rope_config.h"
#include "models/t5_config.h"

namespace graft::models {
namespace {

using nlohmann::json;

// What transformers' config class of a Llama-like model type takes for an absent key.
struct Defaults {
  const char* model_type;
  int64_t num_kv_heads;  // 0 = num_attention_heads
  int64_t max_positions;
  int64_t sliding_window;  // 0 = none
};
constexpr Defaults kLlamaTypes[] = {
    {"llama", 0, 2048, 0}, {"mistral", 8, 131'072, 4096}, {"qwen2", 32, 32'768, 4096}};

absl::Status Refuse(const std::string& origin, const std::string& key, const std::string& why) {
  return InputError(absl::StrCat(origin, ": ", key, ": ", why));
}

absl::Status ReadHeads(const json& config, const Defaults& defaults, const std::string& origin,
                       ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(out->num_heads,
                         GetInt(config, "num_attention_heads", 1, kMaxHeads, origin));
  const bool absent = !config.contains("num_key_value_heads");
  const int64_t fallback =
      absent && defaults.num_kv_heads > 0 ? defaults.num_kv_heads : out->num_heads;
  GRAFT_ASSIGN_OR_RETURN(out->num_kv_heads,
                         GetIntOr(config, "num_key_value_heads", fallback, 1, kMaxHeads, origin));
  if (out->num_heads % out->num_kv_heads != 0) {
    return Refuse(origin, "num_key_value_heads",
                  absl::StrCat("found ", out->num_kv_heads, ", must divide num_attention_heads, ",
                               out->num_heads));
  }
  if (!HasValue(config, "head_dim") && out->hidden_size % out->num_heads != 0) {
    return Refuse(origin, "num_attention_heads",
                  absl::StrCat("found ", out->num_heads, ", must divide hidden_size, ",
                               out->hidden_size, ", when head_dim is not given"));
  }
  GRAFT_ASSIGN_OR_RETURN(
      out->head_dim,
      GetIntOr(config, "head_dim", out->hidden_size / out->num_heads, 1, kMaxHeadDim, origin));
  if (out->head_dim % 2 != 0 || out->head_dim > kMaxHeadDim) {
    return Refuse(origin, "head_dim",
                  absl::StrCat("is ", out->head_dim, ", must be even and at most ", kMaxHeadDim));
  }
  return absl::OkStatus();
}

absl::Status ReadLlamaSizes(const json& config, const Defaults& defaults, const std::string& origin,
                            ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(out->hidden_size, GetInt(config, "hidden_size", 1, kMaxHidden, origin));
  GRAFT_ASSIGN_OR_RETURN(out->num_layers,
                         GetInt(config, "num_hidden_layers", 1, kMaxLayers, origin));
  GRAFT_ASSIGN_OR_RETURN(out->intermediate_size,
                         GetInt(config, "intermediate_size", 1, kMaxIntermediate, origin));
  GRAFT_ASSIGN_OR_RETURN(out->vocab_size, GetInt(config, "vocab_size", 1, kMaxVocab, origin));
  GRAFT_ASSIGN_OR_RETURN(out->max_positions,
                         GetIntOr(config, "max_position_embeddings", defaults.max_positions, 1,
                                  kMaxPositions, origin));
  return ReadHeads(config, defaults, origin, out);
}

absl::Status ReadLlamaNumerics(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(out->norm_eps,
                         GetRealOr(config, "rms_norm_eps", 1e-6, 1e-30, 1.0, origin));
  GRAFT_ASSIGN_OR_RETURN(out->initializer_range,
                         GetRealOr(config, "initializer_range", 0.02, 0.0, 1.0, origin));
  GRAFT_ASSIGN_OR_RETURN(out->attention_dropout,
                         GetRealOr(config, "attention_dropout", 0.0, 0.0, 1.0, origin));
  GRAFT_ASSIGN_OR_RETURN(out->tie_word_embeddings,
                         GetBoolOr(config, "tie_word_embeddings", false, origin));
  GRAFT_ASSIGN_OR_RETURN(out->activation, GetStringOr(config, "hidden_act", "silu", origin));
  if (out->activation != "silu") {
    return Refuse(origin, "hidden_act",
                  absl::StrCat("found \"", Printable(out->activation), "\", supported is silu"));
  }
  GRAFT_ASSIGN_OR_RETURN(out->rope, ReadRopeConfig(config, out->max_positions, origin));
  return absl::OkStatus();
}

absl::Status ReadBiases(const json& config, const std::string& origin, ModelConfig* out) {
  if (out->model_type == "qwen2") {
    out->qkv_bias = true;  // part of the architecture, without a key
    return absl::OkStatus();
  }
  if (out->model_type != "llama") return absl::OkStatus();
  GRAFT_ASSIGN_OR_RETURN(out->qkv_bias, GetBoolOr(config, "attention_bias", false, origin));
  out->attention_out_bias = out->qkv_bias;
  GRAFT_ASSIGN_OR_RETURN(out->mlp_bias, GetBoolOr(config, "mlp_bias", false, origin));
  return absl::OkStatus();
}

// The window of the layers that have one; 0 = none.
absl::StatusOr<int64_t> ReadWindow(const json& config, const Defaults& defaults,
                                   const std::string& origin) {
  if (defaults.sliding_window == 0) return 0;
  if (std::string(defaults.model_type) == "qwen2") {
    GRAFT_ASSIGN_OR_RETURN(const bool use, GetBoolOr(config, "use_sliding_window", false, origin));
    if (!use) return 0;
  }
  const bool is_null = config.contains("sliding_window") && !HasValue(config, "sliding_window");
  return GetIntOr(config, "sliding_window", is_null ? 0 : defaults.sliding_window, 1, kMaxPositions,
                  origin);
}

// `layer_types` must be possible with the window; only qwen2 mixes the two kinds of layers.
absl::Status ApplyLayerTypes(const json& config, int64_t window, const std::string& origin,
                             ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> types,
                         GetStringList(config, "layer_types", origin));
  if (static_cast<int64_t>(types.size()) != out->num_layers) {
    return Refuse(
        origin, "layer_types",
        absl::StrCat("has ", types.size(), " entries, num_hidden_layers is ", out->num_layers));
  }
  for (std::size_t i = 0; i < types.size(); ++i) {
    const bool slides = types[i] == "sliding_attention";
    if (!slides && types[i] != "full_attention") {
      return Refuse(origin, absl::StrCat("layer_types[", i, "]"),
                    absl::StrCat("found \"", Printable(types[i]),
                                 "\", supported are full_attention, sliding_attention"));
    }
    const bool must_slide = out->model_type == "mistral" && window > 0;
    if ((slides && window == 0) || (!slides && must_slide)) {
      return Refuse(origin, absl::StrCat("layer_types[", i, "]"),
                    absl::StrCat("found \"", types[i], "\", which contradicts the sliding window"));
    }
    out->sliding_window[i] = slides ? window : 0;
  }
  return absl::OkStatus();
}

absl::Status ReadSlidingWindow(const json& config, const Defaults& defaults,
                               const std::string& origin, ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(const int64_t window, ReadWindow(config, defaults, origin));
  int64_t first_layer = 0;
  if (out->model_type == "qwen2") {
    GRAFT_ASSIGN_OR_RETURN(first_layer,
                           GetIntOr(config, "max_window_layers", 28, 0, kMaxLayers, origin));
  }
  out->sliding_window.assign(static_cast<std::size_t>(out->num_layers), 0);
  for (int64_t i = first_layer; i < out->num_layers; ++i) {
    out->sliding_window[static_cast<std::size_t>(i)] = window;
  }
  if (!HasValue(config, "layer_types")) return absl::OkStatus();
  return ApplyLayerTypes(config, window, origin, out);
}

// Some folders write -1 for "none".
absl::StatusOr<std::optional<int64_t>> ReadTokenId(const json& config, const std::string& key,
                                                   const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const int64_t id, GetIntOr(config, key, -1, -1, kMaxVocab, origin));
  return id < 0 ? std::optional<int64_t>() : std::optional<int64_t>(id);
}

absl::Status ReadTokens(const json& config, const std::string& origin, ModelConfig* out) {
  GRAFT_ASSIGN_OR_RETURN(out->bos_token_id, ReadTokenId(config, "bos_token_id", origin));
  GRAFT_ASSIGN_OR_RETURN(out->pad_token_id, ReadTokenId(config, "pad_token_id", origin));
  if (HasValue(config, "eos_token_id") && config["eos_token_id"].is_array()) {
    GRAFT_ASSIGN_OR_RETURN(out->eos_token_ids,
                           GetIntList(config, "eos_token_id", 0, kMaxVocab, origin));
    return absl::OkStatus();
  }
  GRAFT_ASSIGN_OR_RETURN(const std::optional<int64_t> eos,
                         ReadTokenId(config, "eos_token_id", origin));
  if (eos) out->eos_token_ids.push_back(*eos);
  return absl::OkStatus();
}

absl::Status ReadNames(const json& config, const std::string& origin, ModelConfig* out) {
  if (HasValue(config, "architectures")) {
    GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                           GetStringList(config, "architectures", origin));
    if (!names.empty()) out->architecture = names[0];
  }
  const char* const key = HasValue(config, "dtype") ? "dtype" : "torch_dtype";
  GRAFT_ASSIGN_OR_RETURN(out->dtype, GetStringOr(config, key, "", origin));
  if (out->dtype != "" && out->dtype != "float32" && out->dtype != "bfloat16" &&
      out->dtype != "float16") {
    return Refuse(origin, key,
                  absl::StrCat("found \"", Printable(out->dtype),
                               "\", supported are float32, bfloat16, float16"));
  }
  return absl::OkStatus();
}

absl::Status ReadLlamaConfig(const json& config, const std::string& origin, ModelConfig* out) {
  const Defaults* const defaults =
      std::find_if(std::begin(kLlamaTypes), std::end(kLlamaTypes),
                   [out](const Defaults& row) { return out->model_type == row.model_type; });
  GRAFT_RETURN_IF_ERROR(ReadLlamaSizes(config, *defaults, origin, out));
  GRAFT_RETURN_IF_ERROR(ReadLlamaNumerics(config, origin, out));
  GRAFT_RETURN_IF_ERROR(ReadBiases(config, origin, out));
  return ReadSlidingWindow(config, *defaults, origin, out);
}

// One row per model type; a new backbone adds its line here.
struct ModelType {
  const char* name;
  absl::Status (*read)(const json& config, const std::string& origin, ModelConfig* out);
};
constexpr ModelType kModelTypes[] = {
    {"llama", &ReadLlamaConfig}, {"mistral", &ReadLlamaConfig},   {"qwen2", &ReadLlamaConfig},
    {"gpt2", &ReadGpt2Config},   {"roberta", &ReadRobertaConfig}, {"t5", &ReadT5Config},
};

absl::StatusOr<const ModelType*> FindModelType(const json& config, const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const std::string name, GetString(config, "model_type", origin));
  std::vector<std::string> names;
  for (const ModelType& row : kModelTypes) {
    if (name == row.name) return &row;
    names.push_back(row.name);
  }
  return Refuse(origin, "model_type",
                absl::StrCat("found \"", Printable(name), "\", supported are ", JoinNames(names)));
}

}  // namespace

absl::StatusOr<std::string> ReadActivation(const json& config, const std::string& key,
                                           const std::string& fallback, const std::string& origin) {
  static const std::vector<std::string> kKnown = {"gelu", "gelu_new", "gelu_pytorch_tanh", "relu"};
  GRAFT_ASSIGN_OR_RETURN(const std::string name, GetStringOr(config, key, fallback, origin));
  if (std::find(kKnown.begin(), kKnown.end(), name) != kKnown.end()) return name;
  return Refuse(origin, key,
                absl::StrCat("found \"", Printable(name), "\", supported are ", JoinNames(kKnown)));
}

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& text, const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const json config, ParseJson(text, origin));
  const std::string where = Printable(origin, 512);
  GRAFT_ASSIGN_OR_RETURN(const ModelType* type, FindModelType(config, where));
  ModelConfig out;
  out.model_type = type->name;
  GRAFT_RETURN_IF_ERROR(CheckConfigKeys(config, out.model_type, where));
  GRAFT_RETURN_IF_ERROR(ReadNames(config, where, &out));
  GRAFT_RETURN_IF_ERROR(type->read(config, where, &out));
  GRAFT_RETURN_IF_ERROR(ReadTokens(config, where, &out));
  return out;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& folder) {
  const std::string path = JoinPath(folder, "config.json");
  GRAFT_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, JsonLimits().max_bytes));
  return ParseModelConfig(text, path);
}

}  // namespace graft::models
