// trainer/inspect.h: what `graft inspect` says of each kind of folder, and the adapter rows A7 to
// A9 of the malformed inputs.
#include "trainer/inspect.h"

#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/hash.h"
#include "base/status.h"
#include "tests/sharding/tiny_run.h"
#include "tests/testing/dataset_folder.h"
#include "tests/testing/model_folder.h"
#include "tests/testing/status_matchers.h"

namespace graft::trainer {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::TempFolder;
using ::graft::testing::Tensors;
using ::graft::testing::TinyConfig;
using ::graft::testing::TinyDataset;
using ::graft::testing::WriteTinyModel;
using nlohmann::json;
using ::testing::HasSubstr;

TEST(InspectTest, ModelFolder) {
  const TempFolder folder;
  WriteTinyModel(folder);
  const auto text = DescribeFolder(folder.path());
  ASSERT_THAT(text, IsOk());
  EXPECT_THAT(*text, HasSubstr("model type        llama\n"));
  EXPECT_THAT(*text, HasSubstr("attention heads   4 of width 4, 2 for keys and values\n"));
  // 2 x 32 x 16 embedding and head, 16 norm, 2 layers of 768 + 1152 + 32.
  EXPECT_THAT(*text, HasSubstr("parameters        4944\n"));
  EXPECT_THAT(*text, HasSubstr("weights           F32 19.3 KiB\n"));
}

TEST(InspectTest, ModelFolderWhoseWeightsDoNotFit) {
  const TempFolder folder;
  WriteTinyModel(folder);
  json config = TinyConfig();
  config["intermediate_size"] = 20;
  folder.Write("config.json", config.dump());
  EXPECT_THAT(DescribeFolder(folder.path()), FailsWith(ErrorKind::kInput, "config.json says"));
}

TEST(InspectTest, DataSet) {
  const TempFolder folder;
  TinyDataset().Write(folder);
  const auto text = DescribeFolder(folder.path());
  ASSERT_THAT(text, IsOk());
  EXPECT_THAT(*text, HasSubstr("kind              causal_lm\n"));
  EXPECT_THAT(*text, HasSubstr("longest sample    5 tokens, limit 8\n"));
  EXPECT_THAT(*text, HasSubstr("all shards match dataset.json\n"));
}

TEST(InspectTest, Checkpoint) {
  const TempFolder folder;
  ASSERT_THAT(testing::SaveTiny(folder.path(), 40), IsOk());
  const std::string path = folder.Path("step-00000040");
  const auto text = DescribeFolder(path);
  ASSERT_THAT(text, IsOk());
  EXPECT_THAT(*text, HasSubstr("step              40 finished: 40 updates, 0 skipped"));
  EXPECT_THAT(*text, HasSubstr("adapter           red, 15 parameters, hash64 "));
  EXPECT_THAT(*text, HasSubstr("layout            data 1 x pipeline 1, layers 2, 1f1b"));
  EXPECT_THAT(*text, HasSubstr("checksums         every file and every tensor match"));
  std::string shard = folder.Read("step-00000040/shards/prompt.safetensors");
  shard[shard.size() / 2] ^= 4;
  folder.Write("step-00000040/shards/prompt.safetensors", shard);
  EXPECT_THAT(DescribeFolder(path), FailsWith(ErrorKind::kInput, "prompt.safetensors: sha256 is"));
}

// Rows A11 and A12 of the malformed inputs.
TEST(InspectTest, A11AndA12ManifestOfAnotherVersionAndAFileElsewhere) {
  const TempFolder folder;
  ASSERT_THAT(testing::SaveTiny(folder.path(), 40), IsOk());
  const std::string manifest = "step-00000040/manifest.json";
  const std::string whole = folder.Read(manifest);
  const auto refused = [&](const std::string& from, const std::string& to) {
    std::string text = whole;
    text.replace(text.find(from), from.size(), to);
    const size_t hash = text.find("\"self_sha256\": \"") + 16;
    text.replace(hash, 64, std::string(64, '0'));
    text.replace(hash, 64, Sha256Hex(text));
    folder.Write(manifest, text);
    return DescribeFolder(folder.Path("step-00000040"));
  };
  EXPECT_THAT(refused("\"version\": 1", "\"version\": 2"),
              FailsWith(ErrorKind::kInput, "version: found 2, this program reads 1"));
  EXPECT_THAT(refused("shards/prompt.safetensors", "shards/../../prompt.safetensors"),
              FailsWith(ErrorKind::kInput, "file name"));
}

TEST(InspectTest, WhatIsNoFolderOfOurs) {
  const TempFolder folder;
  EXPECT_THAT(DescribeFolder(folder.Path("absent")), FailsWith(ErrorKind::kInput, "not exist"));
  EXPECT_THAT(DescribeFolder(folder.Write("file", "x")),
              FailsWith(ErrorKind::kInput, "not a folder"));
  EXPECT_THAT(DescribeFolder(folder.path()), FailsWith(ErrorKind::kInput, "dataset.json"));
}

constexpr char kModule[] = "base_model.model.model.layers.0.self_attn.q_proj";

// LoRA of rank 2 on q_proj of layer 0, as huggingface/peft names it.
class InspectAdapterTest : public ::testing::Test {
 protected:
  InspectAdapterTest() {
    tensors_.Add(std::string(kModule) + ".lora_A.weight", {2, 16});
    tensors_.Add(std::string(kModule) + ".lora_B.weight", {16, 2});
  }
  absl::StatusOr<std::string> Describe() {
    folder_.Write("adapter_config.json", config_.dump());
    tensors_.Write(folder_.Path("adapter_model.safetensors"));
    return DescribeFolder(folder_.path());
  }
  TempFolder folder_;
  Tensors tensors_;
  json config_ = {{"peft_type", "LORA"},
                  {"r", 2},
                  {"lora_alpha", 4},
                  {"base_model_name_or_path", "some/model"},
                  {"target_modules", {"q_proj"}}};
};

TEST_F(InspectAdapterTest, Lora) {
  const auto text = Describe();
  ASSERT_THAT(text, IsOk());
  EXPECT_THAT(*text, HasSubstr("method            LORA\n"));
  EXPECT_THAT(*text, HasSubstr("base model        some/model\n"));
  EXPECT_THAT(*text, HasSubstr("parameters        64\n"));
}

TEST_F(InspectAdapterTest, A7RankDiffersFromTheConfig) {
  config_["r"] = 4;
  EXPECT_THAT(Describe(), FailsWith(ErrorKind::kInput, "lora_A.weight`: its rank is 2"));
  config_["rank_pattern"] = {{"layers.0.self_attn.q_proj", 2}};
  EXPECT_THAT(Describe(), IsOk());
  config_["rank_pattern"] = {{"layers.1.self_attn.q_proj", 2}};
  EXPECT_THAT(Describe(), FailsWith(ErrorKind::kInput, "its rank is 2"));
}

TEST_F(InspectAdapterTest, A8ValueIsNotANumber) {
  tensors_.values(std::string(kModule) + ".lora_B.weight")[5] =
      std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(Describe(),
              FailsWith(ErrorKind::kInput, "lora_B.weight`: element 5 is not a finite number"));
}

TEST_F(InspectAdapterTest, A9TensorOfAnotherModule) {
  config_["target_modules"] = {"v_proj"};
  EXPECT_THAT(Describe(), FailsWith(ErrorKind::kInput, "target_modules"));
  config_["target_modules"] = "all-linear";
  EXPECT_THAT(Describe(), IsOk());
}

TEST_F(InspectAdapterTest, HalfAPair) {
  tensors_.Remove(std::string(kModule) + ".lora_B.weight");
  EXPECT_THAT(Describe(), FailsWith(ErrorKind::kInput, "lora_B.weight` is missing"));
}

}  // namespace
}  // namespace graft::trainer
