// The real binary: the malformed inputs of rows 58 to 60 (reliability.md 7) that need a model, a
// data set or an earlier run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/launch/program.h"
#include "tests/testing/dataset_folder.h"
#include "tests/testing/model_folder.h"
#include "tests/testing/temp_folder.h"

namespace graft {
namespace {

using testing::ExpectRefused;
using testing::ProgramResult;
using testing::RunGraft;
using testing::TempFolder;

// A two-layer model, a data set of five samples and a recipe that trains on them.
class MalformedRun : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::WriteTinyModel(model_);
    testing::TinyDataset().Write(data_);
    recipe_ = work_.Write(
        "r.yaml",
        absl::StrCat("run: {output: ", work_.Path("out"), "}\nmodel: {path: ", model_.path(),
                     "}\ndata: {train: ", data_.path(), "}\nadapter: {method: lora, rank: 2}\n",
                     "optim: {steps: 2, global_batch: 2}\ncheckpoint: {every: 1}\n"));
  }

  ProgramResult Run(const std::string& command, const std::vector<std::string>& overrides,
                    int ranks = 1) const {
    std::vector<std::string> arguments = {command, "--config", recipe_};
    arguments.insert(arguments.end(), overrides.begin(), overrides.end());
    return RunGraft(arguments, ranks);
  }

  TempFolder model_, data_, work_;
  std::string recipe_;
};

TEST_F(MalformedRun, TheRecipeItselfTrains) {
  const ProgramResult result = Run("train", {});
  EXPECT_EQ(result.code, 0) << result.err;
}

TEST_F(MalformedRun, Row58MoreStagesThanLayers) {
  ExpectRefused(Run("plan", {"parallel.pipeline=3"}), 78, "recipe", {"3", "2 layers"});
  const ProgramResult three = Run("train", {"parallel.pipeline=3"}, 3);
  EXPECT_EQ(three.code, 78) << three.err;
  EXPECT_THAT(three.err, ::testing::HasSubstr("graft: error: recipe: "));
}

TEST_F(MalformedRun, Row59RanksAndSitesThatDoNotFit) {
  ExpectRefused(Run("train", {"adapter.rank=0"}), 78, "recipe",
                {"command line: adapter.rank: found `0`"});
  for (const char* command : {"train", "plan"}) {
    ExpectRefused(Run(command, {"adapter.rank=9"}), 78, "recipe", {"rank", "9", "8"});
    ExpectRefused(Run(command, {"adapter.sites=[cross.q]"}), 78, "recipe", {"cross.q", "attn.q"});
    ExpectRefused(Run(command, {"adapter.layers=[2]"}), 78, "recipe", {"adapter.layers", "`2`"});
  }
}

TEST_F(MalformedRun, Row60ResumeAtWhatIsNoCheckpointOfThisRun) {
  const std::string file = work_.Write("file", "no checkpoint");
  ExpectRefused(Run("train", {"checkpoint.resume=" + file}), 74, "io", {file});
  ExpectRefused(Run("train", {"checkpoint.resume=" + work_.Path("absent")}), 74, "io", {"absent"});
  ExpectRefused(Run("train", {"checkpoint.resume=" + data_.path()}), 74, "io", {data_.path()});

  ASSERT_EQ(Run("train", {}).code, 0);
  const std::string foreign = work_.Path("out/checkpoints/step-00000002");
  ExpectRefused(Run("train", {"run.output=" + work_.Path("other"), "run.seed=1", "optim.steps=3",
                              "checkpoint.resume=" + foreign}),
                74, "io", {"seed", "0", "1"});
}

TEST_F(MalformedRun, Row60OnTwoRanksEndsWithoutAHang) {
  const std::string file = work_.Write("file", "no checkpoint");
  const ProgramResult two = Run("train", {"parallel.pipeline=2", "checkpoint.resume=" + file}, 2);
  EXPECT_EQ(two.code, 74) << two.err;
  EXPECT_THAT(two.err, ::testing::HasSubstr("graft: error: io: "));
}

}  // namespace
}  // namespace graft
