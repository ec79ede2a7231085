#include "models/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/testing/model_folder.h"
#include "tests/testing/status_matchers.h"

namespace graft::models {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::TinyConfig;
using nlohmann::json;
using ::testing::Each;
using ::testing::ElementsAre;

absl::StatusOr<ModelConfig> Parse(const json& config) {
  return ParseModelConfig(config.dump(), "m/config.json");
}

// The config of SmolLM2-135M-Instruct as published (transformers 4 form).
constexpr char kSmolLm2[] = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
  "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": true,
  "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null,
  "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
  "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152})";

TEST(ModelConfigTest, SmolLm2) {
  const auto config = ParseModelConfig(kSmolLm2, "config.json");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->model_type, "llama");
  EXPECT_EQ(config->architecture, "LlamaForCausalLM");
  EXPECT_EQ(config->num_layers, 30);
  EXPECT_EQ(config->head_dim, 64);
  EXPECT_EQ(config->q_width(), 576);
  EXPECT_EQ(config->kv_width(), 192);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_EQ(config->rope.type, "default");
  EXPECT_EQ(config->rope.theta, 100000.0);
  EXPECT_EQ(config->dtype, "bfloat16");
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2));
  EXPECT_EQ(config->pad_token_id, 2);
  EXPECT_THAT(config->sliding_window, Each(0));
  EXPECT_EQ(config->sliding_window.size(), 30u);
}

// The config of gpt2 as published.
constexpr char kGpt2[] = R"({
  "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
  "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
  "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
  "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null,
  "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
  "summary_use_proj": true, "vocab_size": 50257,
  "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}})";

TEST(ModelConfigTest, Gpt2) {
  const auto config = ParseModelConfig(kGpt2, "config.json");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->hidden_size, 768);
  EXPECT_EQ(config->num_layers, 12);
  EXPECT_EQ(config->head_dim, 64);
  EXPECT_EQ(config->num_kv_heads, 12);
  EXPECT_EQ(config->intermediate_size, 3072);
  EXPECT_EQ(config->max_positions, 1024);
  EXPECT_EQ(config->position_rows, 1024);
  EXPECT_EQ(config->activation, "gelu_new");
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_TRUE(config->layer_norm);
  EXPECT_FALSE(config->gated_ffn);
}

TEST(ModelConfigTest, Gpt2RefusesWhatWouldChangeTheMathematics) {
  const std::pair<const char*, json> changes[] = {{"scale_attn_weights", false},
                                                  {"scale_attn_by_inverse_layer_idx", true},
                                                  {"add_cross_attention", true},
                                                  {"activation_function", "silu"},
                                                  {"n_head", 7},
                                                  {"rope_theta", 10000.0},
                                                  {"hidden_size", 768},
                                                  {"reorder_and_upcast_attn", true}};
  for (const auto& [key, value] : changes) {
    json config = json::parse(kGpt2);
    config[key] = value;
    EXPECT_THAT(Parse(config), FailsWith(ErrorKind::kInput, key)) << key;
  }
}

// The config of roberta-base as published.
constexpr char kRoberta[] = R"({
  "architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0,
  "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
  "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
  "max_position_embeddings": 514, "model_type": "roberta", "num_attention_heads": 12,
  "num_hidden_layers": 12, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265})";

TEST(ModelConfigTest, Roberta) {
  const auto config = ParseModelConfig(kRoberta, "config.json");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->max_positions, 512);
  EXPECT_EQ(config->position_rows, 514);
  EXPECT_EQ(config->position_offset, 2);
  EXPECT_EQ(config->token_types, 1);
  EXPECT_EQ(config->norm_eps, 1e-5);
  EXPECT_FALSE(config->causal);
  EXPECT_FALSE(config->tie_word_embeddings);
}

// The config of google-t5/t5-base as published, without its task_specific_params.
constexpr char kT5[] = R"({
  "architectures": ["T5ForConditionalGeneration"], "d_ff": 3072, "d_kv": 64, "d_model": 768,
  "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
  "is_encoder_decoder": true, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
  "num_heads": 12, "num_layers": 12, "output_past": true, "pad_token_id": 0,
  "relative_attention_num_buckets": 32, "vocab_size": 32128})";

TEST(ModelConfigTest, T5) {
  const auto config = ParseModelConfig(kT5, "config.json");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->encoder_layers, 12);
  EXPECT_EQ(config->num_layers, 24);
  EXPECT_EQ(config->q_width(), 768);
  EXPECT_EQ(config->relative_max_distance, 128);
  EXPECT_TRUE(config->causal);
  EXPECT_FALSE(config->gated_ffn);
  EXPECT_EQ(config->activation, "relu");
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_TRUE(config->scale_decoder_outputs);
  EXPECT_FALSE(config->is_decoder_layer(11));
  EXPECT_TRUE(config->is_decoder_layer(12));
}

// v1.1 as transformers 4 (tie_word_embeddings false) and 5 (scale_decoder_outputs false) write it.
TEST(ModelConfigTest, T5HeadIsUntiedAndUnscaledTogether) {
  for (const char* key : {"tie_word_embeddings", "scale_decoder_outputs"}) {
    json config = json::parse(kT5);
    config["tie_word_embeddings"] = true;
    config[key] = false;
    config["feed_forward_proj"] = "gated-gelu";
    config["dense_act_fn"] = "gelu_new";
    config["is_gated_act"] = true;
    config["num_decoder_layers"] = 3;
    const auto parsed = Parse(config);
    ASSERT_THAT(parsed, IsOk());
    EXPECT_FALSE(parsed->tie_word_embeddings) << key;
    EXPECT_FALSE(parsed->scale_decoder_outputs) << key;
    EXPECT_TRUE(parsed->gated_ffn);
    EXPECT_EQ(parsed->num_layers, 15);
  }
}

TEST(ModelConfigTest, T5RefusesWhatWouldChangeTheMathematics) {
  const std::pair<const char*, json> changes[] = {{"is_encoder_decoder", false},
                                                  {"feed_forward_proj", "gated-silu"},
                                                  {"dense_act_fn", "gelu"},
                                                  {"is_gated_act", true},
                                                  {"relative_attention_num_buckets", 3},
                                                  {"relative_attention_num_buckets", 256},
                                                  {"relative_attention_max_distance", 1'000'000},
                                                  {"num_layers", 0},
                                                  {"d_kv", -1},
                                                  {"decoder_start_token_id", 32128},
                                                  {"hidden_size", 768}};
  for (const auto& [key, value] : changes) {
    json config = json::parse(kT5);
    config[key] = value;
    EXPECT_FALSE(Parse(config).ok()) << key;
    EXPECT_EQ(KindOf(Parse(config).status()), ErrorKind::kInput) << key;
  }
}

TEST(ModelConfigTest, RobertaRefusesWhatWouldChangeTheMathematics) {
  const std::pair<const char*, json> changes[] = {
      {"is_decoder", true},           {"position_embedding_type", "relative_key"},
      {"hidden_act", "silu"},         {"num_attention_heads", 7},
      {"max_position_embeddings", 2}, {"num_key_value_heads", 4}};
  for (const auto& [key, value] : changes) {
    json config = json::parse(kRoberta);
    config[key] = value;
    EXPECT_THAT(Parse(config), FailsWith(ErrorKind::kInput, key)) << key;
  }
}

TEST(ModelConfigTest, Llama32InBothForms) {
  const char old_form[] = R"({
    "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256})";
  json new_form = json::parse(old_form);
  new_form["rope_parameters"] = new_form["rope_scaling"];
  new_form["rope_parameters"]["rope_theta"] = 500000.0;
  new_form["dtype"] = new_form["torch_dtype"];
  for (const char* key : {"rope_scaling", "rope_theta", "torch_dtype"}) new_form.erase(key);
  for (const std::string& text : {std::string(old_form), new_form.dump()}) {
    const auto config = ParseModelConfig(text, "config.json");
    ASSERT_THAT(config, IsOk());
    EXPECT_EQ(config->rope.type, "llama3");
    EXPECT_EQ(config->rope.theta, 500000.0);
    EXPECT_EQ(config->rope.factor, 32.0);
    EXPECT_EQ(config->rope.low_freq_factor, 1.0);
    EXPECT_EQ(config->rope.high_freq_factor, 4.0);
    EXPECT_EQ(config->rope.original_max_positions, 8192);
    EXPECT_EQ(config->dtype, "bfloat16");
    EXPECT_THAT(config->eos_token_ids, ElementsAre(128001, 128008, 128009));
  }
  const auto shape = NamedShape("llama-1b");
  ASSERT_THAT(shape, IsOk());
  const auto config = ParseModelConfig(old_form, "config.json");
  EXPECT_EQ(shape->intermediate_size, config->intermediate_size);
  EXPECT_EQ(shape->kv_width(), config->kv_width());
  EXPECT_EQ(shape->rope.factor, config->rope.factor);
}

TEST(ModelConfigTest, MistralWindowAndDefaults) {
  json config = TinyConfig();
  config["model_type"] = "mistral";
  config["sliding_window"] = 8;
  auto parsed = Parse(config);
  ASSERT_THAT(parsed, IsOk());
  EXPECT_THAT(parsed->sliding_window, ElementsAre(8, 8));
  EXPECT_FALSE(parsed->qkv_bias);
  config["sliding_window"] = nullptr;
  ASSERT_THAT(parsed = Parse(config), IsOk());
  EXPECT_THAT(parsed->sliding_window, ElementsAre(0, 0));
  // What transformers' MistralConfig takes when the keys are absent.
  config.erase("sliding_window");
  config.erase("num_key_value_heads");
  config["num_attention_heads"] = 8;
  ASSERT_THAT(parsed = Parse(config), IsOk());
  EXPECT_THAT(parsed->sliding_window, ElementsAre(4096, 4096));
  EXPECT_EQ(parsed->num_kv_heads, 8);
}

TEST(ModelConfigTest, Qwen2BiasAndWindowPerLayer) {
  json config = TinyConfig();
  config["model_type"] = "qwen2";
  config["sliding_window"] = 8;
  config["max_window_layers"] = 1;
  config["use_sliding_window"] = false;
  config["use_mrope"] = false;  // in the published Qwen2.5 configs
  auto parsed = Parse(config);
  ASSERT_THAT(parsed, IsOk());
  EXPECT_TRUE(parsed->qkv_bias);
  EXPECT_FALSE(parsed->attention_out_bias);
  EXPECT_THAT(parsed->sliding_window, ElementsAre(0, 0));
  config["use_sliding_window"] = true;
  ASSERT_THAT(parsed = Parse(config), IsOk());
  EXPECT_THAT(parsed->sliding_window, ElementsAre(0, 8));
  config["layer_types"] = {"sliding_attention", "full_attention"};
  ASSERT_THAT(parsed = Parse(config), IsOk());
  EXPECT_THAT(parsed->sliding_window, ElementsAre(8, 0));
  config["use_sliding_window"] = false;
  EXPECT_THAT(Parse(config), FailsWith(ErrorKind::kInput, "layer_types[0]"));
}

TEST(ModelConfigTest, BiasesOfLlama) {
  json config = TinyConfig();
  config["attention_bias"] = true;
  config["mlp_bias"] = true;
  const auto parsed = Parse(config);
  ASSERT_THAT(parsed, IsOk());
  EXPECT_TRUE(parsed->qkv_bias);
  EXPECT_TRUE(parsed->attention_out_bias);
  EXPECT_TRUE(parsed->mlp_bias);
}

TEST(ModelConfigTest, HeadDimNeedNotDivide) {
  json config = TinyConfig();
  config["head_dim"] = 6;
  config["hidden_size"] = 18;
  const auto parsed = Parse(config);
  ASSERT_THAT(parsed, IsOk());
  EXPECT_EQ(parsed->q_width(), 24);
}

TEST(ModelConfigTest, YarnKeys) {
  json config = TinyConfig();
  config["rope_scaling"] = {{"type", "yarn"},   {"rope_type", "yarn"},
                            {"factor", 4.0},    {"original_max_position_embeddings", 16},
                            {"beta_fast", 0},   {"mscale", 0.7},
                            {"truncate", false}};
  auto parsed = Parse(config);
  ASSERT_THAT(parsed, IsOk());
  EXPECT_EQ(parsed->rope.factor, 4.0);
  EXPECT_EQ(parsed->rope.beta_fast, 32.0);  // transformers reads 0 as "not given"
  EXPECT_EQ(parsed->rope.mscale, 0.7);
  EXPECT_EQ(parsed->rope.mscale_all_dim, std::nullopt);
  EXPECT_FALSE(parsed->rope.truncate);
  config["rope_scaling"]["factor"] = nullptr;
  ASSERT_THAT(parsed = Parse(config), IsOk());
  EXPECT_EQ(parsed->rope.factor, 64.0 / 16.0);
}

TEST(ModelConfigTest, LinearAndDynamic) {
  for (const char* type : {"linear", "dynamic"}) {
    json config = TinyConfig();
    config["rope_scaling"] = {{"type", type}, {"factor", 2.0}};
    const auto parsed = Parse(config);
    ASSERT_THAT(parsed, IsOk());
    EXPECT_EQ(parsed->rope.type, type);
    EXPECT_EQ(parsed->rope.factor, 2.0);
    // Only dynamic scaling serves sequences beyond the trained positions.
    EXPECT_EQ(parsed->longest_sequence(),
              parsed->max_positions * (std::string(type) == "dynamic" ? 2 : 1));
  }
}

struct RefusedKey {
  const char* key;
  const char* value;  // JSON
  const char* message;
};

class RefusedKeyTest : public ::testing::TestWithParam<RefusedKey> {};

// Everything here changes what the model computes (or is nonsense), so it must not be ignored.
TEST_P(RefusedKeyTest, NamesFileAndKey) {
  json config = TinyConfig();
  config[GetParam().key] = json::parse(GetParam().value);
  EXPECT_THAT(Parse(config),
              FailsWith(ErrorKind::kInput, std::string("m/config.json: ") + GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Keys, RefusedKeyTest,
    ::testing::Values(
        RefusedKey{"final_logit_softcapping", "30.0", "final_logit_softcapping"},
        RefusedKey{"num_experts", "8", "num_experts"},
        RefusedKey{"quantization_config", R"({"bits": 4})", "quantization_config: quantised"},
        RefusedKey{"auto_map", R"({"AutoModel": "x.Y"})", "auto_map"},
        RefusedKey{"per_layer_config", R"({"0": {"head_dim": 2}})", "per_layer_config"},
        RefusedKey{"sliding_window", "4096", "sliding_window"},
        RefusedKey{"rope_interleaved", "true", "rope_interleaved"},
        RefusedKey{"pretraining_tp", "2", "pretraining_tp"},
        RefusedKey{"partial_rotary_factor", "0.5", "partial_rotary_factor"},
        RefusedKey{"is_encoder_decoder", "true", "is_encoder_decoder"},
        RefusedKey{"hidden_act", R"("gelu")", "hidden_act"},
        RefusedKey{"torch_dtype", R"("float8_e4m3fn")", "torch_dtype"},
        RefusedKey{"layer_types", R"(["full_attention"])", "layer_types: has 1"},
        RefusedKey{"layer_types", R"(["full_attention", "linear_attention"])", "layer_types[1]"},
        RefusedKey{"rope_theta", "-1", "rope_theta"},
        RefusedKey{"rms_norm_eps", "0", "rms_norm_eps"},
        RefusedKey{"max_position_embeddings", "16777217", "max_position_embeddings"},
        RefusedKey{"vocab_size", "4194305", "vocab_size"},
        RefusedKey{"head_dim", "5", "head_dim: is 5, must be even"},
        RefusedKey{"eos_token_id", R"([1, "2"])", "eos_token_id[1]"},
        RefusedKey{"tie_word_embeddings", "1", "tie_word_embeddings"},
        RefusedKey{"rope_scaling", R"({"type": "longrope"})", "rope_scaling: rope_type"},
        RefusedKey{"rope_scaling", R"({"type": "linear"})", "rope_scaling: factor: missing"},
        RefusedKey{"rope_scaling", R"({"type": "linear", "factor": 0.5})", "rope_scaling: factor"},
        RefusedKey{"rope_scaling", R"({"type": "linear", "factor": 2, "beta_fast": 3})",
                   "rope_scaling: beta_fast"},
        RefusedKey{"rope_scaling", R"({"type": "linear", "rope_type": "yarn", "factor": 2})",
                   "rope_scaling: rope_type"},
        RefusedKey{"rope_scaling",
                   R"({"type": "dynamic", "factor": 2, "original_max_position_embeddings": 32})",
                   "rope_scaling: original_max_position_embeddings"},
        RefusedKey{"rope_scaling",
                   R"({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4,
                       "high_freq_factor": 4})",
                   "rope_scaling: high_freq_factor"},
        RefusedKey{"rope_parameters", R"({"rope_type": "default", "rope_theta": 5.0})",
                   "rope_parameters: rope_theta"},
        RefusedKey{"rope_parameters", R"({"full_attention": {"rope_type": "default"}})",
                   "rope_parameters: full_attention"}));

TEST(ModelConfigTest, AttentionDropoutIsKept) {
  json config = TinyConfig();
  config["attention_dropout"] = 0.1;
  const auto parsed = Parse(config);
  ASSERT_THAT(parsed, IsOk());
  EXPECT_EQ(parsed->attention_dropout, 0.1);
}

TEST(ModelConfigTest, UnknownKeyThatIsOffIsAccepted) {
  json config = TinyConfig();
  config["use_qk_norm"] = false;
  config["logit_scale"] = nullptr;
  EXPECT_THAT(Parse(config), IsOk());
}

TEST(ModelConfigTest, UnknownKeySuggestsTheNearest) {
  json config = TinyConfig();
  config["rope_thetta"] = 5.0;
  EXPECT_THAT(Parse(config), FailsWith(ErrorKind::kInput, "did you mean `rope_theta`?"));
}

TEST(NamedShapeTest, ParametersOfPublishedModels) {
  // Published parameter counts.
  const std::pair<const char*, int64_t> rows[] = {
      {"smollm2-135m", 134'515'008},   {"llama-1b", 1'235'814'400},
      {"llama-8b", 8'030'261'248},     {"llama-2-7b", 6'738'415'616},
      {"llama-2-13b", 13'015'864'320}, {"llama-70b", 70'553'706'496}};
  for (const auto& [name, count] : rows) {
    const auto config = NamedShape(name);
    ASSERT_THAT(config, IsOk());
    int64_t total = 0;
    for (const auto& [tensor, shape] : ExpectedTensors(*config)) {
      int64_t size = 1;
      for (const int64_t dim : shape) size *= dim;
      total += size;
    }
    EXPECT_EQ(total, count) << name;
  }
}

TEST(NamedShapeTest, UnknownNameListsTheNames) {
  EXPECT_THAT(NamedShape("llama-9b"), FailsWith(ErrorKind::kRecipe, "llama-2-7b"));
}

}  // namespace
}  // namespace graft::models
