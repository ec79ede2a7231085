// Every recipe of launch/recipes is one that this program takes: `graft plan` on the named shape of
// the recipe's line "# plan: SHAPE, trains COUNT", without weights and data, finds that many
// parameters. So neither a key nor a published count in a recipe goes out of date unseen.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/launch/program.h"
#include "tests/testing/temp_folder.h"

namespace graft {
namespace {

using ::testing::HasSubstr;
using testing::ProgramResult;
using testing::RunGraft;
using testing::TempFolder;

// Of a recipe that takes its sizes from a setting.json, which a user makes first: q and v of layer
// 0, rank 4, on SmolLM2-135M.
constexpr char kSetting[] =
    R"({"format": "graft-setting", "version": 1, "model_type": "llama", "num_layers": 30,
        "selection": {"rule": "by hand"},
        "keep": [{"layer": 0, "roles": ["attn.q", "attn.v"], "rank": 4, "alpha": 8.0}]})";
constexpr char kSettingCount[] = "7,680";  // 4 (576 + 576) + 4 (576 + 192)

std::vector<std::filesystem::path> Recipes() {
  const std::filesystem::path folder =
      std::filesystem::path(std::getenv("GRAFT_SOURCE_DIR")) / "launch" / "recipes";
  std::vector<std::filesystem::path> recipes;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    recipes.push_back(entry.path());
  }
  std::sort(recipes.begin(), recipes.end());
  return recipes;
}

std::string ReadText(const std::filesystem::path& path) {
  std::ifstream stream(path);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

class RecipesTest : public ::testing::TestWithParam<std::filesystem::path> {};

TEST_P(RecipesTest, PlansWhatItSays) {
  const std::string text = ReadText(GetParam());
  std::smatch line;
  ASSERT_TRUE(std::regex_search(text, line, std::regex("\n# plan: ([a-z0-9-]+), trains (\\S+)")))
      << "the line `# plan: SHAPE, trains COUNT` is missing behind the first one";
  std::vector<std::string> arguments = {"plan", "--config", GetParam().string(), "model.path=''",
                                        absl::StrCat("model.shape=", line[1].str())};
  if (text.find("train: ") != std::string::npos) arguments.emplace_back("data.train=''");
  const TempFolder folder;
  const bool has_setting = text.find("setting: ") != std::string::npos;
  if (has_setting) {
    arguments.push_back(absl::StrCat("adapter.setting=", folder.Write("setting.json", kSetting)));
  }
  const ProgramResult result = RunGraft(arguments);
  EXPECT_EQ(result.code, 0) << result.err;
  const std::string count = has_setting ? kSettingCount : line[2].str();
  EXPECT_THAT(result.out, HasSubstr(absl::StrCat("\ntrainable ", count, " of ")));
}

// Its header tells where the setting comes from, what a user must bring, and how it is run.
TEST_P(RecipesTest, SaysHowItIsRun) {
  const std::string text = ReadText(GetParam());
  const std::string name = absl::StrCat("launch/recipes/", GetParam().filename().string());
  const std::regex command(
      absl::StrCat("\n#   [^\n]*build/graft (train|eval|score|bench tenants) --config ", name));
  EXPECT_TRUE(std::regex_search(text, command));
}

INSTANTIATE_TEST_SUITE_P(All, RecipesTest, ::testing::ValuesIn(Recipes()),
                         [](const auto& param) { return param.param.stem().string(); });

}  // namespace
}  // namespace graft
