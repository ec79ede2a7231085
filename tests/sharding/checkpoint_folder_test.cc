#include "sharding/checkpoint_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/file.h"
#include "base/hash.h"
#include "models/weights/safetensors.h"
#include "tests/sharding/tiny_run.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::SaveTiny;
using ::graft::testing::TempFolder;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(CheckpointFolder, Names) {
  EXPECT_EQ(StepFolderName(200), "step-00000200");
  EXPECT_EQ(ParseStepFolderName("step-00000200"), 200);
  for (const char* name : {"step-200", "step-00000200.tmp-0001", "step-00000200.bad-1",
                           "step-0000020x", "stop-00000200", "step--0000200", "step-000002000"}) {
    EXPECT_FALSE(ParseStepFolderName(name).has_value()) << name;
  }
  const TempFolder temp;
  EXPECT_THAT(*ListStepFolders(temp.Path("absent")), IsEmpty());
  for (const char* name : {"step-00000009", "step-00000100", "step-00000020", "step-00000300.bad-1",
                           "step-00000400.tmp-0001", "other"}) {
    temp.Write(std::string(name) + "/x", "");
  }
  EXPECT_THAT(*ListStepFolders(temp.path()),
              ElementsAre("step-00000100", "step-00000020", "step-00000009"));
}

// Content that no run can go on from, under right hashes: a writer's fault, still found.
TEST(CheckpointFolder, NumbersMustBeFiniteAndSecondMomentsNotNegative) {
  const TempFolder temp;
  const auto write = [&](float value, float second) {
    const float zero = 0;
    CommitJob job;
    job.checkpoints = temp.path();
    job.temp = "step-00000003.tmp-0001";
    job.manifest = testing::TinyManifest(3);
    job.recipe = "run: {}\n";
    const ParameterShape parameter{"x", {1}};
    job.expected = {parameter};
    ThrowIfError(RemoveTree(temp.Path("step-00000003")));
    ThrowIfError(MakeTempFolder(temp.path(), job.temp));
    job.shards = {ValueOrThrow(
        WriteShard(temp.Path(job.temp), "head", {{parameter, 0, &value, &zero, &second}}))};
    ThrowIfError(CommitCheckpoint(job).status());
    return ValidateCheckpoint(temp.Path("step-00000003"));
  };
  EXPECT_THAT(write(1, 1), IsOk());
  EXPECT_THAT(write(std::numeric_limits<float>::quiet_NaN(), 1),
              FailsWith(ErrorKind::kInput, "`param/x`: number 0 is nan"));
  EXPECT_THAT(write(-1, 1), IsOk());
  EXPECT_THAT(write(1, -1), FailsWith(ErrorKind::kInput, "must be finite and not negative"));
}

TEST(CheckpointFolder, DamageIsNamed) {
  const TempFolder temp;
  ASSERT_THAT(SaveTiny(temp.path(), 7), IsOk());
  const std::string shard = "step-00000007/shards/layer-0001.safetensors";
  const std::string bytes = temp.Read(shard), folder = temp.Path("step-00000007");
  EXPECT_THAT(ValidateCheckpoint(folder), IsOk());
  temp.Write(shard, bytes.substr(1));
  EXPECT_THAT(ValidateCheckpoint(folder), FailsWith(ErrorKind::kInput, "the manifest says"));
  std::string flipped = bytes;
  flipped.back() ^= 1;
  temp.Write(shard, flipped);
  EXPECT_THAT(ValidateCheckpoint(folder), FailsWith(ErrorKind::kInput, "layer-0001"));
  temp.Write(shard, bytes);
  EXPECT_THAT(ValidateCheckpoint(folder), IsOk());
  EXPECT_THAT(Quarantine(temp.path(), "step-00000007"), IsOk());
  EXPECT_THAT(ValidateCheckpoint(temp.Path("step-00000007.bad-1")), IsOk());
}

TEST(CheckpointFolder, HashesAreThoseOfTheFormat) {
  const TempFolder temp;
  ASSERT_THAT(SaveTiny(temp.path(), 1), IsOk());
  const Manifest manifest = ValueOrThrow(ValidateCheckpoint(temp.Path("step-00000001")));
  // adapter.hash64: the parameters one after the other in name order.
  std::string values;
  for (const TensorEntry& entry : manifest.tensors) {
    if (entry.key.rfind("param/", 0) != 0) continue;
    const auto file =
        ValueOrThrow(models::SafetensorsFile::Open(temp.Path("step-00000001/" + entry.file)));
    const models::TensorView view = ValueOrThrow(file->Find(entry.key));
    values.append(reinterpret_cast<const char*>(view.data), static_cast<size_t>(view.bytes));
  }
  EXPECT_EQ(manifest.adapter.parameters, 15);
  EXPECT_EQ(manifest.adapter.hash64, Hash64(values.data(), values.size()));
  const std::string shard = temp.Read("step-00000001/shards/prompt.safetensors");
  EXPECT_EQ(shard.find("{\"__metadata__\":{\"format\":\"graft-shard\",\"version\":\"1\"}"), 8u);
  EXPECT_EQ(static_cast<unsigned char>(shard[0]) % 8, 0);  // the header's length
}

TEST(CheckpointWriter, UnitsOfParameters) {
  EXPECT_EQ(UnitOf("anything", 3, 12), "layer-0003");
  EXPECT_EQ(UnitOf("prompt_embeddings", 12, 12), "prompt");
  EXPECT_EQ(UnitOf("lopa.row.0.weight", 12, 12), "prompt");
  EXPECT_EQ(UnitOf("base_model.model.model.embed_tokens.red_scale", 12, 12), "embed");
  EXPECT_EQ(UnitOf("transformer.wte.weight", 12, 12), "embed");
  EXPECT_EQ(UnitOf("base_model.model.classifier.dense.weight", 12, 12), "head");
}

}  // namespace
}  // namespace graft::sharding
