#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "models/weights/safetensors.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/model_folder.h"
#include "tests/testing/mutate.h"

namespace graft::models {
namespace {

using ::graft::testing::ExpectCleanOutcome;
using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::Mutate;
using ::graft::testing::TempFolder;
using ::graft::testing::TinyWeights;
using ::graft::testing::WriteShardedModel;
using ::graft::testing::WriteTinyModel;
using nlohmann::json;

constexpr char kIndex[] = "model.safetensors.index.json";

absl::StatusOr<std::shared_ptr<WeightFolder>> Open(const TempFolder& folder) {
  return WeightFolder::Open(folder.path(), SafetensorsFile::Options());
}

TEST(WeightFolderTest, OneFileAndShardsHoldTheSame) {
  const TempFolder single, sharded;
  WriteTinyModel(single);
  WriteShardedModel(sharded);
  const auto one = Open(single);
  const auto many = Open(sharded);
  ASSERT_THAT(one, IsOk());
  ASSERT_THAT(many, IsOk());
  EXPECT_EQ((*one)->names(), (*many)->names());
  EXPECT_EQ((*one)->names().size(), TinyWeights().names().size());
  for (const std::string& name : (*one)->names()) {
    const auto a = (*one)->Find(name);
    const auto b = (*many)->Find(name);
    ASSERT_THAT(a, IsOk());
    ASSERT_THAT(b, IsOk());
    EXPECT_EQ(std::string(a->data, a->data + a->bytes), std::string(b->data, b->data + b->bytes));
  }
  EXPECT_FALSE((*many)->Has("model.layers.2.mlp.up_proj.weight"));
  EXPECT_THAT((*many)->Find("x"), FailsWith(ErrorKind::kInput, "tensor `x` is missing"));
}

TEST(WeightFolderTest, ShardsOpenOnFirstUse) {
  const TempFolder folder;
  WriteShardedModel(folder);
  folder.Write("model-00002-of-00002.safetensors", "damaged");
  const auto weights = Open(folder);
  ASSERT_THAT(weights, IsOk());
  EXPECT_THAT((*weights)->Find("model.norm.weight"), IsOk());
  EXPECT_THAT((*weights)->Find("model.layers.1.input_layernorm.weight"),
              FailsWith(ErrorKind::kInput, "model-00002-of-00002.safetensors"));
}

TEST(WeightFolderTest, NothingToRead) {
  const TempFolder folder;
  folder.Write("pytorch_model.bin", "x");
  EXPECT_THAT(Open(folder), FailsWith(ErrorKind::kInput, "model.safetensors"));
}

TEST(WeightFolderTest, ExtraShardIsRefusedAnotherSerialisationIsNot) {
  const TempFolder folder;
  WriteShardedModel(folder);
  folder.Write("consolidated.safetensors", "x");
  EXPECT_THAT(Open(folder), IsOk());
  folder.Write("model-00003-of-00003.safetensors", "x");
  EXPECT_THAT(Open(folder), FailsWith(ErrorKind::kInput, "does not list shard model-00003"));
}

TEST(WeightFolderTest, AShardHoldsExactlyWhatTheIndexSays) {
  const TempFolder folder;
  json index = WriteShardedModel(folder);
  const std::string moved = "model.layers.1.mlp.up_proj.weight";
  index["weight_map"][moved] = "model-00001-of-00002.safetensors";
  folder.Write(kIndex, index.dump());
  EXPECT_THAT((*Open(folder))->Find(moved), FailsWith(ErrorKind::kInput, moved));
  EXPECT_THAT((*Open(folder))->Find("model.layers.1.input_layernorm.weight"),
              FailsWith(ErrorKind::kInput, "puts it into model-00001"));
  index["weight_map"].erase(moved);
  folder.Write(kIndex, index.dump());
  EXPECT_THAT((*Open(folder))->Find("model.layers.1.input_layernorm.weight"),
              FailsWith(ErrorKind::kInput, "does not list it"));
}

TEST(WeightFolderTest, AThousandMutationsOfTheIndex) {
  const TempFolder folder;
  const std::string valid = WriteShardedModel(folder).dump(1);
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    folder.Write(kIndex, Mutate(valid, seed, valid.size()));
    const auto weights = Open(folder);
    ExpectCleanOutcome(weights.status(), folder.path(), seed);
    if (!weights.ok()) continue;
    for (const std::string& name : (*weights)->names()) {
      ExpectCleanOutcome((*weights)->Find(name).status(), folder.path(), seed);
    }
  }
}

}  // namespace
}  // namespace graft::models
