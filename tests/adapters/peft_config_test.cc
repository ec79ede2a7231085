#include "adapters/peft_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

// What huggingface/peft 0.21 writes for LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj",
// "v_proj"]), shortened to the keys that carry meaning.
json HuggingFaceLora() {
  return json::parse(R"({"alora_invocation_tokens": null, "alpha_pattern": {}, "bias": "none",
    "fan_in_fan_out": false, "init_lora_weights": true, "layer_replication": null,
    "loftq_config": {}, "lora_alpha": 8, "lora_bias": false, "lora_dropout": 0.0,
    "megatron_config": null, "modules_to_save": null, "peft_type": "LORA", "r": 4,
    "rank_pattern": {}, "target_modules": ["v_proj", "q_proj"], "use_dora": false,
    "use_rslora": false})");
}

absl::Status CheckLora(const json& config) {
  const auto method = MethodWith("lora", {{"rank", "4"}, {"alpha", "8"}});
  GRAFT_RETURN_IF_ERROR(method->CheckPeftConfig(config, "a/adapter_config.json"));
  return method->FromFolder({}, config, {}, "a/adapter_config.json").status();
}

void ExpectRefused(const json& config, const std::string& message) {
  const absl::Status status = CheckLora(config);
  EXPECT_EQ(ExitCodeOf(status), 65);
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

TEST(PeftConfig, TakesHuggingFacesOwn) {
  const absl::Status status = CheckLora(HuggingFaceLora());
  EXPECT_TRUE(status.ok()) << status;
}

TEST(PeftConfig, LoraWritesFullNamesAndPeftsKeys) {
  const auto method = MethodWith("lora", {{"rank", "4"}, {"alpha", "8"}, {"dropout", "0.1"}});
  const auto matched = *method->MatchSites(LlamaSites(2, 8, 4, 12));
  const json config = method->PeftConfig(matched, {"models/tiny", "CAUSAL_LM"});
  EXPECT_EQ(config.at("target_modules"),
            json({"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj",
                  "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"}));
  EXPECT_EQ(config.at("r"), 4);
  EXPECT_TRUE(config.at("lora_alpha").is_number_integer());
  EXPECT_EQ(config.at("lora_dropout"), 0.1);
  EXPECT_EQ(config.at("inference_mode"), true);
  for (const char* key :
       {"auto_mapping", "peft_version", "revision", "bias", "use_dora", "modules_to_save",
        "init_lora_weights", "rank_pattern", "alpha_pattern", "layers_to_transform",
        "layers_pattern", "fan_in_fan_out", "use_rslora"}) {
    EXPECT_TRUE(config.contains(key)) << key;
  }
}

TEST(PeftConfig, DifferingNumbersNameBoth) {
  json config = HuggingFaceLora();
  config["r"] = 16;
  ExpectRefused(config, "a/adapter_config.json: r is 16, but adapter.rank is 4");
  config = HuggingFaceLora();
  config["lora_alpha"] = 32;
  ExpectRefused(config, "lora_alpha is 32.0, but adapter.alpha is 8.0");
  config = HuggingFaceLora();
  config["use_rslora"] = true;
  ExpectRefused(config, "use_rslora is true, but adapter.rslora is false");
}

TEST(PeftConfig, VariantsOfLoraAreRefusedByName) {
  const std::pair<const char*, json> variants[] = {{"use_dora", true},
                                                   {"lora_bias", true},
                                                   {"rank_pattern", {{"q_proj", 8}}},
                                                   {"alpha_pattern", {{"q_proj", 8}}},
                                                   {"layer_replication", {{0, 1}}},
                                                   {"init_lora_weights", "pissa"},
                                                   {"bias", "all"},
                                                   {"alora_invocation_tokens", {1, 2}}};
  for (const auto& [key, value] : variants) {
    json config = HuggingFaceLora();
    config[key] = value;
    ExpectRefused(config, std::string(key) + " is");
  }
}

TEST(PeftConfig, AnotherTypeIsRefused) {
  json config = HuggingFaceLora();
  config["peft_type"] = "IA3";
  ExpectRefused(config, "peft_type is \"IA3\", but adapter.method `lora` reads \"LORA\"");
  config.erase("peft_type");
  ExpectRefused(config, "peft_type");
}

TEST(PeftConfig, RedKeepsItsKeysAndRefusesAnotherWhat) {
  const auto method = MethodWith("red", {{"what", "bias"}, {"sites", "[ffn.out, attn.q]"}});
  const auto matched = *method->MatchSites(LlamaSites(1, 8, 4, 12));
  json config = method->PeftConfig(matched, {"models/tiny", "CAUSAL_LM"});
  EXPECT_EQ(config.at("peft_type"), "RED");
  EXPECT_EQ(config.at("sites"), json({"attn.q", "ffn.out"}));
  const auto status = MethodWith("red", {})->CheckPeftConfig(config, "f");
  EXPECT_EQ(ExitCodeOf(status), 65);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("what is \"bias\", but adapter.what is scale_and_bias"));
}

}  // namespace
}  // namespace graft::adapters
