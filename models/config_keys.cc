#include "models/config_keys.h"

#include <initializer_list>
#include <map>
#include <set>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::models {
namespace {

using nlohmann::json;
using Names = std::set<std::string>;

// Read by model_config.cc for every model type.
const Names& CommonKeys() {
  static const Names* const names = new Names{
      "model_type", "architectures", "vocab_size",   "initializer_range", "tie_word_embeddings",
      "dtype",      "torch_dtype",   "eos_token_id", "bos_token_id",      "pad_token_id"};
  return *names;
}

Names LlamaKeys(std::initializer_list<std::string> more) {
  Names names = {"hidden_size",
                 "num_hidden_layers",
                 "num_attention_heads",
                 "num_key_value_heads",
                 "head_dim",
                 "intermediate_size",
                 "max_position_embeddings",
                 "rms_norm_eps",
                 "attention_dropout",
                 "hidden_act",
                 "rope_theta",
                 "rope_scaling",
                 "rope_parameters",
                 "layer_types"};
  names.insert(more.begin(), more.end());
  return names;
}

// Read for one family, or known to change nothing in it: GPT-2's summary_* belong to a head that is
// not used here, its n_ctx repeats n_positions, and its dropouts are off. T5's n_positions is what
// it was trained with; it has no limit.
const Names& FamilyKeys(const std::string& model_type) {
  static const auto* const families = new std::map<std::string, Names>{
      {"llama", LlamaKeys({"attention_bias", "mlp_bias"})},
      {"mistral", LlamaKeys({"sliding_window"})},
      {"qwen2", LlamaKeys({"sliding_window", "use_sliding_window", "max_window_layers"})},
      {"gpt2",
       {"n_embd", "n_layer", "n_head", "n_positions", "n_inner", "n_ctx", "activation_function",
        "layer_norm_epsilon", "resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_type",
        "summary_use_proj", "summary_activation", "summary_proj_to_labels",
        "summary_first_dropout"}},
      {"roberta",
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "hidden_act",
        "hidden_dropout_prob", "attention_probs_dropout_prob"}},
      {"t5",
       {"d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
        "relative_attention_num_buckets", "relative_attention_max_distance", "dropout_rate",
        "layer_norm_epsilon", "initializer_factor", "feed_forward_proj", "dense_act_fn",
        "is_gated_act", "is_encoder_decoder", "scale_decoder_outputs", "n_positions",
        "output_past"}},
  };
  return families->at(model_type);
}

// Bookkeeping, generation defaults, tokenizer and task-head keys: none reaches the forward pass of
// the backbone (transformers' PreTrainedConfig and GenerationConfig).
const Names& HarmlessKeys() {
  static const Names* const names = new Names{
      // Bookkeeping.
      "_name_or_path", "_model_name_or_path", "name_or_path", "_commit_hash",
      "transformers_version", "transformers.js_config", "is_llama_config", "unsloth_version",
      "unsloth_fixed", "model_name", "_unsloth_version",
      // How transformers runs, not what it computes.
      "use_cache", "_attn_implementation", "attn_implementation", "_attn_implementation_autoset",
      "_attn_implementation_internal", "_experts_implementation",
      "_experts_implementation_internal", "_flash_attn_2_enabled", "output_attentions",
      "output_hidden_states", "output_scores", "output_router_logits", "return_dict",
      "return_dict_in_generate", "use_return_dict", "torchscript", "use_bfloat16", "tf_legacy_loss",
      "chunk_size_feed_forward", "gradient_checkpointing", "neftune_noise_alpha",
      "keys_to_ignore_at_inference", "base_model_tp_plan", "base_model_pp_plan",
      // Generation.
      "generation_config", "max_length", "min_length", "max_new_tokens", "do_sample",
      "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k",
      "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
      "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
      "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
      "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
      "epsilon_cutoff", "eta_cutoff", "encoder_repetition_penalty", "num_assistant_tokens",
      "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind",
      "target_lookbehind", "is_decoder",
      // Tokenizer.
      "tokenizer_class", "sep_token_id", "unk_token_id", "decoder_start_token_id", "prefix",
      "model_max_length",
      // Task heads.
      "problem_type", "num_labels", "id2label", "label2id", "task_specific_params",
      "finetuning_task", "classifier_dropout"};
  return *names;
}

// Harmless with one value only.
struct FixedKey {
  const char* key;
  json value;
};
const std::vector<FixedKey>& FixedKeys() {
  static const auto* const keys = new std::vector<FixedKey>{
      {"pretraining_tp", 1},
      {"rope_interleaved", false},
      {"partial_rotary_factor", 1.0},
      {"pruned_heads", json::object()},
      {"is_encoder_decoder", false},
      {"scale_attn_weights", true},
      {"add_cross_attention", false},
      {"scale_attn_by_inverse_layer_idx", false},
      {"reorder_and_upcast_attn", false},
      {"position_embedding_type", "absolute"},
  };
  return *keys;
}

absl::Status Refuse(const std::string& origin, const std::string& key, const std::string& why) {
  return InputError(absl::StrCat(origin, ": ", Printable(key), ": ", why));
}

absl::Status CheckOtherKey(const std::string& key, const json& value, const std::string& model_type,
                           const std::string& origin) {
  if (value.is_null() || value == json(false)) return absl::OkStatus();
  if (key == "quantization_config") {
    return Refuse(origin, key, "quantised folders are not read; save the model in a plain dtype");
  }
  if (key == "auto_map") {
    return Refuse(origin, key, "names code of its own, which may change the mathematics");
  }
  std::vector<std::string> known(CommonKeys().begin(), CommonKeys().end());
  known.insert(known.end(), FamilyKeys(model_type).begin(), FamilyKeys(model_type).end());
  return Refuse(origin, key,
                absl::StrCat("found ", DescribeJson(value), ", but model_type ", model_type,
                             " has no such key here and it may change the mathematics",
                             DidYouMean(key, known)));
}

}  // namespace

absl::Status CheckConfigKeys(const json& config, const std::string& model_type,
                             const std::string& origin) {
  for (const FixedKey& fixed : FixedKeys()) {
    const bool is_read = FamilyKeys(model_type).count(fixed.key) > 0;
    if (!is_read && HasValue(config, fixed.key) && config[fixed.key] != fixed.value) {
      return Refuse(origin, fixed.key,
                    absl::StrCat("found ", DescribeJson(config[fixed.key]), ", only ",
                                 fixed.value.dump(), " is supported"));
    }
  }
  for (const auto& [key, value] : config.items()) {
    bool known =
        CommonKeys().count(key) + FamilyKeys(model_type).count(key) + HarmlessKeys().count(key) > 0;
    for (const FixedKey& fixed : FixedKeys()) known = known || key == fixed.key;
    if (!known) GRAFT_RETURN_IF_ERROR(CheckOtherKey(key, value, model_type, origin));
  }
  return absl::OkStatus();
}

}  // namespace graft::models
