#include "adapters/fanlora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "tests/adapters/testing.h"
#include "tests/testing/temp_folder.h"

namespace graft::adapters {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class FanLoraTest : public ::testing::Test {
 protected:
  FanLoraTest() {
    setting_ = json::parse(R"({"format": "graft-setting", "version": 1, "model_type": "llama",
      "num_layers": 3, "selection": {},
      "keep": [{"layer": 0, "roles": ["attn.q", "attn.v"], "rank": 4, "alpha": 8},
               {"layer": 2, "roles": ["ffn.down"], "rank": 2, "alpha": 4.5}]})");
  }

  absl::Status Open() {
    method_ = MethodWith("fanlora", {{"setting", folder_.Write("setting.json", setting_.dump())}});
    return method_->Open({"llama", LlamaSites(3, 8, 4, 12), 3});
  }
  std::vector<models::SiteSpec> Matched() const {
    return *method_->MatchSites(LlamaSites(3, 8, 4, 12));
  }
  absl::Status Check(const json& config) const {
    GRAFT_RETURN_IF_ERROR(method_->CheckPeftConfig(config, "f"));
    return method_->FromFolder(Matched(), config, {}, "f").status();
  }
  void ExpectRefused(const std::string& message) {
    const absl::Status status = Open();
    EXPECT_EQ(ExitCodeOf(status), 65) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }

  testing::TempFolder folder_;
  json setting_;
  std::unique_ptr<Method> method_;
};

TEST_F(FanLoraTest, TheSettingSaysModulesRanksAndAlphas) {
  ASSERT_TRUE(Open().ok());
  const auto parameters = method_->Parameters(Matched());
  ASSERT_EQ(parameters.size(), 6u);
  EXPECT_EQ(parameters[1].name, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight");
  EXPECT_EQ(parameters[1].shape, (std::vector<int64_t>{8, 4}));
  EXPECT_EQ(parameters[4].name, "base_model.model.model.layers.2.mlp.down_proj.lora_A.weight");
  EXPECT_EQ(parameters[4].shape, (std::vector<int64_t>{2, 12}));
  EXPECT_EQ(method_->CountParameters(Matched()), 4 * (8 + 8) + 4 * (8 + 4) + 2 * (12 + 8));
}

TEST_F(FanLoraTest, WritesALoraFolderWithPatterns) {
  ASSERT_TRUE(Open().ok());
  const json config = method_->PeftConfig(Matched(), {"base", "CAUSAL_LM"});
  EXPECT_EQ(config.at("peft_type"), "LORA");
  EXPECT_EQ(config.at("r"), 4);
  EXPECT_EQ(config.at("rank_pattern"), json({{"model.layers.2.mlp.down_proj", 2}}));
  EXPECT_EQ(config.at("alpha_pattern"), json({{"model.layers.2.mlp.down_proj", 4.5}}));
  EXPECT_EQ(config.at("target_modules").size(), 3u);
}

TEST_F(FanLoraTest, AFolderOfAnotherSettingIsRefused) {
  ASSERT_TRUE(Open().ok());
  const json ours = method_->PeftConfig(Matched(), {"base", "CAUSAL_LM"});
  ASSERT_TRUE(Check(ours).ok());
  const std::pair<const char*, const char*> changes[] = {
      {R"({"r": 8})", "q_proj has rank 8 and alpha 8, but"},
      {R"({"lora_alpha": 16})", "has rank 4 and alpha 16"},
      {R"({"rank_pattern": {"model.layers.2.mlp.down_proj": 3}})", "down_proj has rank 3"},
      {R"({"alpha_pattern": null})", "down_proj has rank 2 and alpha 8"},
      {R"({"rank_pattern": {"layers\\.[0-9].*": 2}})", "must be names of modules"},
      {R"({"use_rslora": true})", "use_rslora is true"},
      {R"({"use_dora": true})", "use_dora is"}};
  for (const auto& [patch, message] : changes) {
    json changed = ours;
    changed.merge_patch(json::parse(patch));
    const absl::Status status = Check(changed);
    EXPECT_EQ(ExitCodeOf(status), 65) << patch;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message)) << patch;
  }
}

// huggingface/peft takes the end of a module's name, too.
TEST_F(FanLoraTest, PatternsMatchByEnd) {
  ASSERT_TRUE(Open().ok());
  json config = method_->PeftConfig(Matched(), {"base", "CAUSAL_LM"});
  config["rank_pattern"] = {{"down_proj", 2}};
  config["alpha_pattern"] = {{"mlp.down_proj", 4.5}};
  EXPECT_TRUE(Check(config).ok());
}

TEST_F(FanLoraTest, SettingOfAnotherModelIsRefused) {
  setting_["model_type"] = "gpt2";
  ExpectRefused("model_type: found \"gpt2\", the model's is \"llama\"");
  setting_["model_type"] = "llama";
  setting_["num_layers"] = 4;
  ExpectRefused("num_layers: found 4, the model has 3");
}

TEST_F(FanLoraTest, AbsentRoleAndRankThatDoesNotFitAreNamed) {
  setting_["keep"][0]["roles"] = {"cross.q"};
  ExpectRefused("layer 0 of the model has no cross.q; it has attn.q, attn.k");
  setting_["keep"][0]["roles"] = {"attn.v"};
  setting_["keep"][0]["rank"] = 5;
  ExpectRefused("rank: found 5, at most 4 fits model.layers.0.self_attn.v_proj");
}

TEST_F(FanLoraTest, WithoutASettingItIsARecipeError) {
  const absl::Status status =
      MethodWith("fanlora", {})->Open({"llama", LlamaSites(3, 8, 4, 12), 3});
  EXPECT_EQ(ExitCodeOf(status), 78);
  EXPECT_THAT(std::string(status.message()), HasSubstr("adapter.setting: missing"));
}

}  // namespace
}  // namespace graft::adapters
