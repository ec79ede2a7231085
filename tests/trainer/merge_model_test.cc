#include "trainer/merge_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/testing/model_folder.h"
#include "tests/testing/status_matchers.h"
#include "tests/trainer/training_run.h"
#include "trainer/export_source.h"

namespace graft::trainer {
namespace {

using testing::FailsWith;
using testing::IsOk;
using testing::Json;
using testing::TempFolder;
using testing::TrainingRun;

// A model folder with weights that differ from each other, a data set of its vocabulary, and a
// trained adapter.
class MergeModelTest : public ::testing::Test {
 protected:
  void Train(const std::string& method, const Json& config) {
    testing::WriteRandomDataset(data_, 9, 32);
    model_.Write("config.json", config.dump(2));
    model_.Write("tokenizer.json", "{\"kept\": true}");
    testing::Tensors weights = testing::TinyWeights(config);
    for (const std::string& name : weights.names()) {
      std::vector<float>& values = weights.values(name);
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = 0.3f * std::sin(static_cast<float>(i * 12.9898 + name.size() * 7.0)) +
                    (name.find("norm") != std::string::npos ? 1.0f : 0.0f);
      }
    }
    weights.Write(model_.Path("model.safetensors"));
    recipe_ = run_.NewRecipe("out");
    recipe_.model.shape.clear();
    recipe_.model.path = model_.path();
    recipe_.data.train = recipe_.data.eval = data_.path();
    recipe_.adapter.method = method;
    if (method != "lora") recipe_.method_fields.clear();
    recipe_.optim.lr = 0.05;
    ASSERT_THAT(TrainingRun::Train(recipe_), IsOk());
    recipe_.export_.from = run_.outputs().Path("out");
  }

  double LossOf(const Recipe& recipe) const {
    double loss = 0;
    EXPECT_THAT(
        TrainingRun::OnRanks(recipe,
                             [&](comm::World& world) -> absl::Status {
                               GRAFT_ASSIGN_OR_RETURN(const auto data, Dataset::Open(data_.path()));
                               GRAFT_ASSIGN_OR_RETURN(
                                   const auto model,
                                   LoadedModel::Load(recipe, world, {.sequence_length = 32}));
                               loss = Evaluate(*model, *data, data->size(), 2).loss;
                               return absl::OkStatus();
                             }),
        IsOk());
    return loss;
  }

  absl::Status Merge(const std::string& to, int64_t shard_bytes) {
    GRAFT_ASSIGN_OR_RETURN(const models::ModelConfig config, ReadRecipeModel(recipe_));
    GRAFT_ASSIGN_OR_RETURN(const AdapterChoice adapter, ChooseAdapter(recipe_, config, 0));
    GRAFT_ASSIGN_OR_RETURN(const sharding::NamedTensors tensors,
                           ReadExportSource(recipe_, adapter));
    return MergeModel(model_.path(), config, *adapter.method, adapter.matched, tensors, to,
                      {.shard_bytes = shard_bytes});
  }

  void ExpectMergedEqualsUnmerged(int64_t shard_bytes) {
    const std::string to = merged_.Path("model");
    ASSERT_THAT(Merge(to, shard_bytes), IsOk());
    Recipe base = recipe_, adapted = recipe_, merged = recipe_;
    base.adapter = merged.adapter = AdapterSection();
    base.method_fields.clear();
    merged.method_fields.clear();
    adapted.adapter.init_from = run_.outputs().Path("out/adapter");
    merged.model.path = to;
    const double expected = LossOf(adapted);
    EXPECT_GT(std::abs(LossOf(base) - expected), 1e-3);
    EXPECT_NEAR(LossOf(merged), expected, 1e-5 * expected);
    EXPECT_TRUE(PathExists(to + "/tokenizer.json"));
  }

  TrainingRun run_;
  TempFolder data_, model_, merged_;
  Recipe recipe_;
};

TEST_F(MergeModelTest, LoraMergedEqualsUnmerged) {
  Train("lora", testing::TinyConfig());
  ExpectMergedEqualsUnmerged(1 << 30);
}

TEST_F(MergeModelTest, SmallFilesGetAnIndex) {
  Train("lora", testing::TinyConfig());
  ExpectMergedEqualsUnmerged(3000);
  EXPECT_TRUE(PathExists(merged_.Path("model/model.safetensors.index.json")));
  EXPECT_FALSE(PathExists(merged_.Path("model/model.safetensors")));
}

TEST_F(MergeModelTest, RedAddsBiasesAndSaysSoInTheConfig) {
  Train("red", testing::TinyConfig());
  ExpectMergedEqualsUnmerged(1 << 30);
  EXPECT_EQ(Json::parse(merged_.Read("model/config.json"))["mlp_bias"], true);
}

TEST_F(MergeModelTest, RedCannotBeMergedWhereNoBiasFits) {
  Json config = testing::TinyConfig();
  config["model_type"] = "mistral";
  config["architectures"] = {"MistralForCausalLM"};
  Train("red", config);
  EXPECT_THAT(Merge(merged_.Path("model"), 1 << 30), FailsWith(ErrorKind::kRecipe, "needs a bias"));
  EXPECT_FALSE(PathExists(merged_.Path("model")));
}

TEST_F(MergeModelTest, AnExistingFolderIsLeftAlone) {
  Train("lora", testing::TinyConfig());
  EXPECT_THAT(Merge(merged_.path(), 1 << 30), FailsWith(ErrorKind::kIo, "exists"));
}

TEST_F(MergeModelTest, ACheckpointGivesTheAdapterOfItsStep) {
  Train("lora", testing::TinyConfig());
  const auto read = [&](const std::string& from) {
    recipe_.export_.from = run_.outputs().Path(from);
    const models::ModelConfig config = ReadRecipeModel(recipe_).value();
    return ReadExportSource(recipe_, ChooseAdapter(recipe_, config, 0).value());
  };
  const auto from_run = read("out"), from_checkpoint = read("out/checkpoints/step-00000006"),
             from_adapter = read("out/adapter");
  ASSERT_THAT(from_run, IsOk());
  ASSERT_THAT(from_checkpoint, IsOk());
  ASSERT_THAT(from_adapter, IsOk());
  ASSERT_EQ(from_run->size(), from_checkpoint->size());
  for (const auto& [name, tensor] : *from_checkpoint) {
    const auto other = std::find_if(from_run->begin(), from_run->end(),
                                    [&](const auto& entry) { return entry.first == name; });
    ASSERT_NE(other, from_run->end()) << name;
    EXPECT_TRUE(tensor.equal(other->second)) << name;
  }
  EXPECT_THAT(read("absent"), FailsWith(ErrorKind::kInput, "export.from"));
  recipe_.method_fields.push_back({"alpha", "99.0"});
  EXPECT_THAT(read("out/checkpoints/step-00000006"),
              FailsWith(ErrorKind::kRecipe, "adapter.alpha"));
}

}  // namespace
}  // namespace graft::trainer
