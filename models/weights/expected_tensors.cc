#include "models/weights/expected_tensors.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::models {
namespace {

using ShapeMap = std::map<std::string, std::vector<int64_t>>;

void AddLinear(const std::string& name, int64_t in, int64_t out, bool bias, ShapeMap* shapes) {
  (*shapes)[name + ".weight"] = {out, in};
  if (bias) (*shapes)[name + ".bias"] = {out};
}

void AddLlamaLayer(const ModelConfig& config, int64_t layer, ShapeMap* shapes) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  const int64_t width = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  AddLinear(attention + "q_proj", width, config.q_width(), config.qkv_bias, shapes);
  AddLinear(attention + "k_proj", width, config.kv_width(), config.qkv_bias, shapes);
  AddLinear(attention + "v_proj", width, config.kv_width(), config.qkv_bias, shapes);
  AddLinear(attention + "o_proj", config.q_width(), width, config.attention_out_bias, shapes);
  AddLinear(mlp + "gate_proj", width, inner, config.mlp_bias, shapes);
  AddLinear(mlp + "up_proj", width, inner, config.mlp_bias, shapes);
  AddLinear(mlp + "down_proj", inner, width, config.mlp_bias, shapes);
  (*shapes)[prefix + "input_layernorm.weight"] = {width};
  (*shapes)[prefix + "post_attention_layernorm.weight"] = {width};
}

void AddLlama(const ModelConfig& config, ShapeMap* shapes) {
  (*shapes)["model.embed_tokens.weight"] = {config.vocab_size, config.hidden_size};
  (*shapes)["model.norm.weight"] = {config.hidden_size};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) AddLlamaLayer(config, layer, shapes);
}

void AddLayerNorm(const std::string& name, int64_t width, ShapeMap* shapes) {
  (*shapes)[name + ".weight"] = (*shapes)[name + ".bias"] = {width};
}

// HF's Conv1D: (in, out).
void AddConv1D(const std::string& name, int64_t in, int64_t out, ShapeMap* shapes) {
  (*shapes)[name + ".weight"] = {in, out};
  (*shapes)[name + ".bias"] = {out};
}

void AddGpt2(const ModelConfig& config, ShapeMap* shapes) {
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  (*shapes)["transformer.wte.weight"] = {config.vocab_size, width};
  (*shapes)["transformer.wpe.weight"] = {config.position_rows, width};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("transformer.h.", layer, ".");
    AddLayerNorm(prefix + "ln_1", width, shapes);
    AddConv1D(prefix + "attn.c_attn", width, 3 * width, shapes);
    AddConv1D(prefix + "attn.c_proj", width, width, shapes);
    AddLayerNorm(prefix + "ln_2", width, shapes);
    AddConv1D(prefix + "mlp.c_fc", width, inner, shapes);
    AddConv1D(prefix + "mlp.c_proj", inner, width, shapes);
  }
  AddLayerNorm("transformer.ln_f", width, shapes);
}

void AddRoberta(const ModelConfig& config, ShapeMap* shapes) {
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  const std::string embeddings = "roberta.embeddings.";
  (*shapes)[embeddings + "word_embeddings.weight"] = {config.vocab_size, width};
  (*shapes)[embeddings + "position_embeddings.weight"] = {config.position_rows, width};
  (*shapes)[embeddings + "token_type_embeddings.weight"] = {config.token_types, width};
  AddLayerNorm(embeddings + "LayerNorm", width, shapes);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("roberta.encoder.layer.", layer, ".");
    for (const char* name : {"query", "key", "value"}) {
      AddLinear(prefix + "attention.self." + name, width, width, true, shapes);
    }
    AddLinear(prefix + "attention.output.dense", width, width, true, shapes);
    AddLayerNorm(prefix + "attention.output.LayerNorm", width, shapes);
    AddLinear(prefix + "intermediate.dense", width, inner, true, shapes);
    AddLinear(prefix + "output.dense", inner, width, true, shapes);
    AddLayerNorm(prefix + "output.LayerNorm", width, shapes);
  }
}

void AddT5Attention(const ModelConfig& config, const std::string& name, ShapeMap* shapes) {
  for (const char* part : {".q", ".k", ".v"}) {
    AddLinear(name + part, config.hidden_size, config.q_width(), false, shapes);
  }
  AddLinear(name + ".o", config.q_width(), config.hidden_size, false, shapes);
}

void AddT5Layer(const ModelConfig& config, const std::string& prefix, bool decoder,
                ShapeMap* shapes) {
  const int64_t width = config.hidden_size, inner = config.intermediate_size;
  AddT5Attention(config, prefix + "0.SelfAttention", shapes);
  if (decoder) AddT5Attention(config, prefix + "1.EncDecAttention", shapes);
  const std::string last = absl::StrCat(prefix, decoder ? 2 : 1);
  for (int part = 0; part <= (decoder ? 2 : 1); ++part) {
    (*shapes)[absl::StrCat(prefix, part, ".layer_norm.weight")] = {width};
  }
  const std::string ffn = last + ".DenseReluDense.";
  if (config.gated_ffn) {
    AddLinear(ffn + "wi_0", width, inner, false, shapes);
    AddLinear(ffn + "wi_1", width, inner, false, shapes);
  } else {
    AddLinear(ffn + "wi", width, inner, false, shapes);
  }
  AddLinear(ffn + "wo", inner, width, false, shapes);
}

void AddT5(const ModelConfig& config, ShapeMap* shapes) {
  (*shapes)["shared.weight"] = {config.vocab_size, config.hidden_size};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const bool decoder = config.is_decoder_layer(layer);
    const std::string stack = decoder ? "decoder" : "encoder";
    const int64_t number = decoder ? layer - config.encoder_layers : layer;
    AddT5Layer(config, absl::StrCat(stack, ".block.", number, ".layer."), decoder, shapes);
    if (number > 0) continue;
    (*shapes)[stack + ".block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = {
        config.relative_buckets, config.num_heads};
    (*shapes)[stack + ".final_layer_norm.weight"] = {config.hidden_size};
  }
}

// Copies of the shared embedding and, in old folders, a table that cross attention does not use.
bool MayBeExtraInT5(const ModelConfig& config, const std::string& name) {
  return name == "encoder.embed_tokens.weight" || name == "decoder.embed_tokens.weight" ||
         name == "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight" ||
         (config.tie_word_embeddings && name == "lm_head.weight");
}

// Heads and the pooler, of which only the task head is used, and the position numbers of old
// folders.
bool MayBeExtraInRoberta(const std::string& name) {
  for (const char* part : {"lm_head.", "classifier.", "roberta.pooler.", "pooler."}) {
    if (absl::StartsWith(name, part)) return true;
  }
  return absl::EndsWith(name, "embeddings.position_ids");
}

bool HasLanguageHead(const ModelConfig& config) {
  return config.causal && !absl::EndsWith(config.architecture, "ForSequenceClassification");
}

// Caches of old folders (rotary frequencies, causal masks), task heads, the copy of a tied head.
bool MayBeExtra(const ModelConfig& config, const std::string& name) {
  if (config.model_type == "gpt2" &&
      (absl::EndsWith(name, ".attn.bias") || absl::EndsWith(name, ".attn.masked_bias"))) {
    return true;
  }
  if (config.model_type == "roberta") return MayBeExtraInRoberta(name);
  if (config.model_type == "t5") return MayBeExtraInT5(config, name);
  return absl::EndsWith(name, ".rotary_emb.inv_freq") || name == "score.weight" ||
         (config.tie_word_embeddings && name == "lm_head.weight");
}

bool IsFloat(TensorType type) {
  return type == TensorType::kFloat32 || type == TensorType::kFloat16 ||
         type == TensorType::kBFloat16;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("(", absl::StrJoin(shape, ", "), ")");
}

}  // namespace

ShapeMap ExpectedTensors(const ModelConfig& config) {
  ShapeMap shapes;
  if (config.model_type == "gpt2") {
    AddGpt2(config, &shapes);
  } else if (config.model_type == "roberta") {
    AddRoberta(config, &shapes);
  } else if (config.model_type == "t5") {
    AddT5(config, &shapes);
  } else {
    AddLlama(config, &shapes);
  }
  if (!config.tie_word_embeddings && HasLanguageHead(config)) {
    shapes["lm_head.weight"] = {config.vocab_size, config.hidden_size};
  }
  return shapes;
}

namespace {

// The number behind `prefix` at the front of a name; -1 without that prefix.
int NumberBehind(const std::string& name, const std::string& prefix) {
  int number = -1;
  if (!absl::StartsWith(name, prefix)) return -1;
  const std::string rest = name.substr(prefix.size());
  return absl::SimpleAtoi(rest.substr(0, rest.find('.')), &number) ? number : -1;
}

int LayerOf(const ModelConfig& config, const std::string& name) {
  for (const char* const prefix :
       {"model.layers.", "transformer.h.", "roberta.encoder.layer.", "encoder.block."}) {
    if (const int layer = NumberBehind(name, prefix); layer >= 0) return layer;
  }
  if (const int layer = NumberBehind(name, "decoder.block."); layer >= 0) {
    return static_cast<int>(config.encoder_layers) + layer;
  }
  if (name == "encoder.final_layer_norm.weight") return static_cast<int>(config.encoder_layers) - 1;
  const bool behind = name == "lm_head.weight" || absl::StartsWith(name, "model.norm.") ||
                      absl::StartsWith(name, "transformer.ln_f.") ||
                      absl::StartsWith(name, "decoder.final_layer_norm.");
  return static_cast<int>(config.num_layers) + (behind ? 1 : 0);
}

}  // namespace

std::vector<PlacedTensor> PlacedTensors(const ModelConfig& config, bool language_head) {
  std::vector<PlacedTensor> placed;
  for (const auto& [name, shape] : ExpectedTensors(config)) {
    if (!language_head && name == "lm_head.weight") continue;
    placed.push_back({name, shape, LayerOf(config, name)});
  }
  std::stable_sort(placed.begin(), placed.end(),
                   [](const PlacedTensor& a, const PlacedTensor& b) { return a.layer < b.layer; });
  return placed;
}

absl::Status CheckWeights(const ModelConfig& config, WeightFolder& weights) {
  const ShapeMap expected = ExpectedTensors(config);
  for (const auto& [name, shape] : expected) {
    GRAFT_ASSIGN_OR_RETURN(const TensorView view, weights.Find(name));
    const std::string where =
        absl::StrCat(Printable(weights.folder(), 512), ": tensor `", name, "`");
    if (view.shape != shape) {
      return InputError(absl::StrCat(where, ": shape is ", ShapeText(view.shape),
                                     ", config.json says ", ShapeText(shape)));
    }
    if (!IsFloat(view.type)) {
      return InputError(absl::StrCat(where, ": dtype is ", TensorTypeName(view.type),
                                     ", supported are F32, F16, BF16"));
    }
  }
  std::set<std::string> found;
  for (const auto& [name, shape] : expected) found.insert(weights.StoredName(name));
  for (const std::string& name : weights.names()) {
    if (found.count(name) == 0 && !MayBeExtra(config, name)) {
      return InputError(absl::StrCat(Printable(weights.folder(), 512), ": tensor `",
                                     Printable(name), "` belongs to no place of a ",
                                     config.model_type, " model with this config.json"));
    }
  }
  return absl::OkStatus();
}

}  // namespace graft::models
