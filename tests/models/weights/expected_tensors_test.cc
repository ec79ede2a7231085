#include "models/weights/expected_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/testing/status_matchers.h"
#include "tests/testing/model_folder.h"

namespace graft::models {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::TempFolder;
using ::graft::testing::TinyConfig;
using ::graft::testing::TinyWeights;
using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

TEST(ExpectedTensorsTest, NamesAndShapesOfALayer) {
  json config = TinyConfig();
  config["model_type"] = "qwen2";
  config["num_hidden_layers"] = 1;
  config["tie_word_embeddings"] = true;
  const auto tensors = ExpectedTensors(*ParseModelConfig(config.dump(), "c"));
  using Shape = std::vector<int64_t>;
  EXPECT_THAT(tensors, UnorderedElementsAre(
                           Pair("model.embed_tokens.weight", Shape{32, 16}),
                           Pair("model.norm.weight", Shape{16}),
                           Pair("model.layers.0.input_layernorm.weight", Shape{16}),
                           Pair("model.layers.0.post_attention_layernorm.weight", Shape{16}),
                           Pair("model.layers.0.self_attn.q_proj.weight", Shape{16, 16}),
                           Pair("model.layers.0.self_attn.q_proj.bias", Shape{16}),
                           Pair("model.layers.0.self_attn.k_proj.weight", Shape{8, 16}),
                           Pair("model.layers.0.self_attn.k_proj.bias", Shape{8}),
                           Pair("model.layers.0.self_attn.v_proj.weight", Shape{8, 16}),
                           Pair("model.layers.0.self_attn.v_proj.bias", Shape{8}),
                           Pair("model.layers.0.self_attn.o_proj.weight", Shape{16, 16}),
                           Pair("model.layers.0.mlp.gate_proj.weight", Shape{24, 16}),
                           Pair("model.layers.0.mlp.up_proj.weight", Shape{24, 16}),
                           Pair("model.layers.0.mlp.down_proj.weight", Shape{16, 24})));
}

absl::Status Check(const TempFolder& folder, const graft::testing::Tensors& tensors,
                   const json& config) {
  tensors.Write(folder.Path("model.safetensors"));
  const auto parsed = ParseModelConfig(config.dump(), "config.json");
  const auto weights = WeightFolder::Open(folder.path(), SafetensorsFile::Options());
  if (!weights.ok()) return weights.status();
  return CheckWeights(*parsed, **weights);
}

TEST(CheckWeightsTest, AllowedExtrasAndRefusedOnes) {
  const TempFolder folder;
  json config = TinyConfig();
  auto tensors = TinyWeights();
  EXPECT_THAT(Check(folder, tensors, config), IsOk());
  tensors.Add("model.layers.0.self_attn.rotary_emb.inv_freq", {2});
  tensors.Add("score.weight", {2, 16});
  EXPECT_THAT(Check(folder, tensors, config), IsOk());
  config["tie_word_embeddings"] = true;  // the folder's own head is a copy
  EXPECT_THAT(Check(folder, tensors, config), IsOk());
  tensors.Add("model.layers.0.self_attn.q_proj.bias", {16});
  EXPECT_THAT(Check(folder, tensors, config),
              FailsWith(ErrorKind::kInput, "q_proj.bias` belongs to no place"));
}

TEST(CheckWeightsTest, MissingHeadOfAnUntiedModel) {
  const TempFolder folder;
  auto tensors = TinyWeights();
  tensors.Remove("lm_head.weight");
  EXPECT_THAT(Check(folder, tensors, TinyConfig()),
              FailsWith(ErrorKind::kInput, "tensor `lm_head.weight` is missing"));
}

}  // namespace
}  // namespace graft::models
