// The real binary: help, version, and the rows 55 to 58 and 60 of the malformed inputs
// (reliability.md 7) that need no model.
#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/launch/program.h"
#include "tests/testing/temp_folder.h"

namespace graft {
namespace {

using testing::ExpectRefused;
using ::testing::HasSubstr;
using testing::ProgramResult;
using testing::RunGraft;
using ::testing::StartsWith;
using testing::TempFolder;

constexpr char kRecipe[] =
    "model: {path: no/such/model}\n"
    "data: {train: no/such/data}\n"
    "adapter: {method: lora}\n";

TEST(Program, VersionNamesTheLibraries) {
  const ProgramResult result = RunGraft({"--version"});
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.err, "");
  EXPECT_THAT(result.out, StartsWith("graft 0."));
  EXPECT_THAT(result.out, HasSubstr("LibTorch 2."));
  EXPECT_THAT(result.out, HasSubstr("MPI "));
  EXPECT_THAT(result.out, HasSubstr("NCCL "));
}

TEST(Program, HelpListsCommandsAndEveryRecipeKey) {
  ProgramResult result = RunGraft({"--help"});
  EXPECT_EQ(result.code, 0);
  for (const char* command :
       {"train", "eval", "generate", "prompt", "export", "plan", "bench", "inspect"}) {
    EXPECT_THAT(result.out, HasSubstr(absl::StrCat("\n  ", command, " ")));
    const ProgramResult help = RunGraft({command, "--help"});
    EXPECT_EQ(help.code, 0) << command;
    EXPECT_EQ(help.err, "") << command;
  }
  result = RunGraft({"train", "--help"});
  EXPECT_THAT(result.out, HasSubstr("  optim.lr = 1e-04"));
  EXPECT_THAT(result.out, HasSubstr("adapter, method: lora:\n"));
  EXPECT_THAT(result.out, HasSubstr("  adapter.rank = 8"));
}

// A tiny measurement from end to end: every method takes its turn, and the file says what the table
// does.
TEST(Program, BenchTenantsMeasuresEveryMethod) {
  const TempFolder folder;
  const std::string recipe = folder.Write("recipe.yaml", R"(
model: {shape: llama-tiny}
parallel: {threads: 1, device: cpu}
tenants: {sizes: [rank, parameters], kernels: [grouped, loop], batches: [3], mixes: [distinct, half_bare],
          prompts: [5], new_tokens: [4], rank: 2, repeats: 1, keep_adapters: true, cuda_graphs: [true, false]}
)");
  const ProgramResult result = RunGraft(
      {"bench", "tenants", "--config", recipe, absl::StrCat("run.output=", folder.Path("out"))});
  ASSERT_EQ(result.code, 0) << result.err;
  const nlohmann::json json = nlohmann::json::parse(folder.Read("out/tenants.json"));
  EXPECT_EQ(json.at("format"), "graft-tenants");
  std::vector<std::string> names;
  for (const auto& variant : json.at("variants")) names.push_back(variant.at("name"));
  EXPECT_THAT(names, ::testing::ElementsAre("bare", "lora", "lora-loop", "fanlora", "fanlora-equal",
                                            "para", "para-equal", "red", "ia3", "prompt_tuning",
                                            "lopa", "lopa-equal", "idpg", "idpg-equal", "merged"));
  const int64_t lora = json.at("variants")[1].at("trainable_parameters");
  EXPECT_LE(json.at("variants")[6].at("trainable_parameters").get<int64_t>(), lora);
  ASSERT_EQ(json.at("cells").size(), 2u);
  for (const auto& cell : json.at("cells")) {
    EXPECT_THAT(result.out, HasSubstr(cell.at("mix").get<std::string>()));
    ASSERT_EQ(cell.at("results").size(), names.size());
    for (const auto& measured : cell.at("results")) {
      EXPECT_GT(measured.at("tpot_seconds").at("median").get<double>(), 0);
      EXPECT_GT(measured.at("ttft_seconds").at("median").get<double>(), 0);
      EXPECT_GT(measured.at("tpot_over_merged").get<double>(), 0);
      EXPECT_THAT(result.out, HasSubstr(measured.at("variant").get<std::string>()));
      EXPECT_EQ(measured.at("cuda_graphs"), false);  // there is no GPU
    }
    EXPECT_EQ(cell.at("requests").size(), 3u);
    EXPECT_EQ(cell.at("requests")[0].at("adapter"), "tenant-0");
    EXPECT_EQ(cell.at("requests")[0].at("answer").size(), 4u);
  }
  EXPECT_TRUE(json.at("cells")[1].at("requests")[1].at("adapter").is_null());
  EXPECT_NE(folder.Read("out/adapters/tenant-2/adapter_config.json"), "");
}

TEST(Program, BenchTenantsRefusesWhatItCannotMeasure) {
  const TempFolder folder;
  const std::string recipe = folder.Write("recipe.yaml", "model: {shape: llama-tiny}\n");
  const auto refused = [&](const std::string& key, const std::string& message) {
    ExpectRefused(RunGraft({"bench", "tenants", "--config", recipe, key,
                            absl::StrCat("run.output=", folder.Path("out"))}),
                  78, "recipe", {message});
  };
  refused("tenants.batches=[8, many]", "tenants.batches: found `many`, must be numbers from 1");
  refused("tenants.new_tokens=1", "tenants.new_tokens: found 1");
  refused("tenants.prompts=250", "found 250 with 32 new tokens, the model has 256 positions");
  refused("tenants.mixes=all", "tenants.mixes");
  refused("tenants.memory_budget=1000", "the memory budget for all is 1000");
  refused("model.shape=t5-tiny", "task.type");
  refused("tenants.cuda_graphs=[maybe]", "tenants.cuda_graphs");
}

constexpr char kRanksRecipe[] =
    "model: {shape: llama-tiny}\n"
    "adapter: {method: lora, sites: all}\n"
    "parallel: {threads: 1, device: cpu}\n"
    "optim: {global_batch: 8, micro_batch: 2}\n"
    "bench: {repeats: 3, max_bytes: 4096, length: 16}\n";

// Operation and bytes of each row of collectives.json; the table has them too.
std::vector<std::string> CollectivesOf(const std::vector<std::string>& keys, int ranks,
                                       const std::string& recipe = kRanksRecipe) {
  const TempFolder folder;
  std::vector<std::string> arguments = {"bench", "collectives", "--config",
                                        folder.Write("recipe.yaml", recipe),
                                        absl::StrCat("run.output=", folder.Path("out"))};
  arguments.insert(arguments.end(), keys.begin(), keys.end());
  const ProgramResult result = RunGraft(arguments, ranks);
  EXPECT_EQ(result.code, 0) << result.err;
  if (result.code != 0) return {};
  const nlohmann::json json = nlohmann::json::parse(folder.Read("out/collectives.json"));
  EXPECT_EQ(json.at("format"), "graft-collectives");
  EXPECT_EQ(json.at("ranks"), ranks);
  std::vector<std::string> found;
  for (const auto& row : json.at("rows")) {
    const auto operation = row.at("operation").get<std::string>();
    found.push_back(absl::StrCat(operation, " ", row.at("bytes").get<int64_t>()));
    if (row.contains("of")) absl::StrAppend(&found.back(), " ", row.at("of").get<std::string>());
    EXPECT_GT(row.at("seconds").at("min").get<double>(), 0);
    EXPECT_THAT(result.out, HasSubstr(absl::StrCat("\n", operation, " ")));
  }
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'),
            static_cast<int64_t>(found.size()) + 1);
  return found;
}

// Each operation that the layout has at each size, and what the recipe itself would move: LoRA of
// rank 8 on all linears of llama-tiny has 32,768 parameters, a row of hidden states 64 numbers.
TEST(Program, BenchCollectivesMeasuresWhatTheLayoutMoves) {
  using ::testing::ElementsAre;
  EXPECT_THAT(
      CollectivesOf({"parallel.data=2"}, 2),
      ElementsAre("all-reduce 4", "all-reduce 1024", "all-reduce 4096",
                  "all-reduce 131072 gradients of lora", "control vector 120", "barrier 0"));
  EXPECT_THAT(CollectivesOf({"parallel.pipeline=3", "bench.max_bytes=4",
                             "adapter.method=prompt_tuning", "adapter.prompt_length=4"},
                            3),
              ElementsAre("send 4", "send 10240 hidden states of 2 x 20 rows", "control vector 120",
                          "barrier 0"));
  EXPECT_THAT(CollectivesOf({}, 4,
                            "parallel: {data: 2, pipeline: 2, threads: 1, device: cpu}\n"
                            "bench: {repeats: 3, max_bytes: 4}\n"),
              ElementsAre("all-reduce 4", "send 4", "control vector 120", "barrier 0"));
}

TEST(Program, BenchOverRanksRefusesAlikeOnAll) {
  const TempFolder folder;
  const std::string recipe = folder.Write("recipe.yaml", kRanksRecipe);
  const auto refused = [&](const std::string& topic, const std::vector<std::string>& keys,
                           const std::string& message) {
    std::vector<std::string> arguments = {"bench", topic, "--config", recipe,
                                          absl::StrCat("run.output=", folder.Path("out"))};
    arguments.insert(arguments.end(), keys.begin(), keys.end());
    const ProgramResult result = RunGraft(arguments, /*ranks=*/2);
    EXPECT_EQ(result.code, 78) << message << result.err;
    EXPECT_THAT(result.err, HasSubstr(message));
    EXPECT_EQ(result.out, "");
  };
  ExpectRefused(RunGraft({"bench", "collectives", "--config", recipe}), 78, "recipe",
                {"parallel.data: data x pipeline = 1", "2 or more ranks"});
  ExpectRefused(RunGraft({"bench", "schedules", "--config", recipe}), 78, "recipe",
                {"parallel.pipeline: found 1", "2 or more"});
  const std::string two = "parallel.pipeline=2";
  refused("collectives", {two, "adapter.sites=[none.such]"}, "adapter.sites");
  refused("schedules", {two, "optim.global_batch=6"}, "parallel.schedule: interleaved needs");
  refused("schedules", {two, "parallel.split=[2,2]"}, "parallel.split");
  refused("schedules", {two, "task.type=classification"}, "task.type: found classification");
  refused("schedules", {two, "bench.schedules=[1f1b,1f1b]"}, "bench.schedules: found [1f1b, 1f1b]");
  refused("schedules", {two, "adapter.method=prompt_tuning", "adapter.prompt_length=255"},
          "adapter.prompt_length: found 255, the model has room for 256 rows");
  const ProgramResult tenants = RunGraft({"bench", "tenants", "--config", recipe}, /*ranks=*/2);
  EXPECT_EQ(tenants.code, 64);
  EXPECT_THAT(tenants.err, HasSubstr("`graft bench tenants` was started on 2 ranks, must be 1"));
}

TEST(Program, BenchSchedulesComparesThem) {
  const TempFolder folder;
  const std::string recipe = folder.Write("recipe.yaml", kRanksRecipe);
  const ProgramResult result =
      RunGraft({"bench", "schedules", "--config", recipe, "parallel.pipeline=2",
                "optim.global_batch=7", absl::StrCat("run.output=", folder.Path("out"))},
               /*ranks=*/2);
  ASSERT_EQ(result.code, 0) << result.err;
  const nlohmann::json json = nlohmann::json::parse(folder.Read("out/schedules.json"));
  EXPECT_EQ(json.at("format"), "graft-schedules");
  std::vector<std::string> schedules;
  for (const auto& row : json.at("rows")) {
    schedules.push_back(row.at("schedule"));
    EXPECT_EQ(row.at("micro_batches"), 4);  // the last of one sample
    EXPECT_EQ(row.at("length"), 16);
    const double seconds = row.at("step_seconds").at("median");
    EXPECT_NEAR(row.at("tokens_per_second").get<double>() * seconds, 7 * 16, 1e-6);
    const double idle = row.at("idle_fraction").at("median");
    EXPECT_GT(idle, 0);
    EXPECT_LT(idle, 1);
    EXPECT_THAT(result.out, HasSubstr(absl::StrCat("\n", schedules.back(), " ")));
  }
  EXPECT_THAT(schedules, ::testing::ElementsAre("gpipe", "1f1b", "interleaved"));
  EXPECT_GT(json.at("rows")[0].at("plan_idle_fraction").get<double>(),
            json.at("rows")[2].at("plan_idle_fraction").get<double>());
}

std::string AliasBomb() {
  std::string text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 10; ++i) {
    const std::vector<std::string> aliases(10, absl::StrCat("*a", i - 1));
    absl::StrAppend(&text, "a", i, ": &a", i, " [", absl::StrJoin(aliases, ", "), "]\n");
  }
  return text;
}

TEST(Malformed, Row55AliasBomb) {
  const TempFolder folder;
  ExpectRefused(RunGraft({"train", "--config", folder.Write("bomb.yaml", AliasBomb())}), 78,
                "recipe", {"bomb.yaml:", "more than 10000 nodes"});
}

TEST(Malformed, Row56UnknownKey) {
  const TempFolder folder;
  const std::string yaml = absl::StrCat(kRecipe, "optim: {learning_rte: 1}\n");
  ExpectRefused(RunGraft({"train", "--config", folder.Write("r.yaml", yaml)}), 78, "recipe",
                {"r.yaml:4: optim.learning_rte: unknown key"});
}

TEST(Malformed, Row57LearningRate) {
  const TempFolder folder;
  for (const char* value : {"nan", "-1", "1e400"}) {
    const std::string yaml = absl::StrCat(kRecipe, "optim: {lr: ", value, "}\n");
    ExpectRefused(
        RunGraft({"train", "--config", folder.Write("r.yaml", yaml)}), 78, "recipe",
        {absl::StrCat("r.yaml:4: optim.lr: found `", value, "`, must be a number from 0")});
  }
}

TEST(Malformed, Row58RanksThatDoNotFit) {
  const TempFolder folder;
  const std::string yaml = absl::StrCat(kRecipe, "parallel: {data: 3}\n");
  const std::string path = folder.Write("r.yaml", yaml);
  const std::vector<std::string> arguments = {"train", "--config", path, "optim.global_batch=3"};
  ExpectRefused(RunGraft(arguments), 78, "recipe",
                {"data x pipeline = 3 x 1 = 3", "number of ranks, which is 1"});
  const ProgramResult two = RunGraft(arguments, 2);
  EXPECT_EQ(two.code, 78) << two.err;
  EXPECT_THAT(two.err, HasSubstr("number of ranks, which is 2"));
}

TEST(Malformed, Row60CommandLine) {
  const TempFolder folder;
  const std::string recipe = folder.Write("r.yaml", kRecipe);
  const std::vector<std::vector<std::string>> rows = {
      {"train", "--config", recipe, "--resume"},
      {"train", "--config", recipe, "--config", recipe},
      {"train", "--config"},
      {"train", "--config", recipe, "optim.lr"},
      {"train", "--config", recipe, "optim.lr=1", "optim.lr=1"},
      {"trian", "--config", recipe},
      {}};
  for (const std::vector<std::string>& row : rows) {
    ExpectRefused(RunGraft(row), 64, "usage", {"command line: "});
  }
  const ProgramResult two = RunGraft(rows[0], 2);
  EXPECT_EQ(two.code, 64) << two.err;
  EXPECT_THAT(two.LastLine(), StartsWith("graft: error: usage: command line: "));
}

TEST(Malformed, MissingRecipeAndMissingKeys) {
  const TempFolder folder;
  ExpectRefused(RunGraft({"train", "--config", folder.Path("none.yaml")}), 78, "recipe",
                {"none.yaml", "No such file"});
  const std::string path = folder.Write("r.yaml", "model: {path: m}\n");
  ExpectRefused(RunGraft({"train", "--config", path}), 78, "recipe",
                {"r.yaml: data.train: missing, `graft train` needs it"});
}

TEST(Malformed, CommandsOfOneRankRefuseMore) {
  const TempFolder folder;
  const ProgramResult two = RunGraft({"inspect", folder.path()}, 2);
  EXPECT_EQ(two.code, 64) << two.err;
  EXPECT_THAT(two.LastLine(), HasSubstr("started on 2 ranks, must be 1"));
}

}  // namespace
}  // namespace graft
