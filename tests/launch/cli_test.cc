#include "launch/cli.h"

#include "tests/testing/status_matchers.h"

namespace graft::launch {
namespace {

using testing::FailsWith;
using testing::IsOk;

absl::StatusOr<CommandLine> Parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "graft");
  return ParseCommandLine(static_cast<int>(arguments.size()), arguments.data(),
                          {{"train", "fine-tune", true, true},
                           {"plan", "dry run", true},
                           {"bench", "measure", true, false, {"tenants", "links"}},
                           {"inspect", "look", false}});
}

TEST(CommandLine, TakesRecipeAndOverrides) {
  const absl::StatusOr<CommandLine> line = Parse(
      {"train", "--config", "a.yaml", "optim.lr=-1e-3", "parallel.split=[1, 2]", "run.name="});
  ASSERT_THAT(line, IsOk());
  EXPECT_EQ(line->command, "train");
  EXPECT_EQ(line->config, "a.yaml");
  EXPECT_EQ(line->overrides,
            (std::vector<std::string>{"optim.lr=-1e-3", "parallel.split=[1, 2]", "run.name="}));
  const absl::StatusOr<CommandLine> before = Parse({"train", "run.seed=1", "--config=a.yaml"});
  ASSERT_THAT(before, IsOk());
  EXPECT_EQ(before->overrides, std::vector<std::string>{"run.seed=1"});
}

TEST(CommandLine, TakesATopic) {
  const absl::StatusOr<CommandLine> line =
      Parse({"bench", "links", "--config", "a.yaml", "run.seed=1"});
  ASSERT_THAT(line, IsOk());
  EXPECT_EQ(line->topic, "links");
  EXPECT_EQ(line->config, "a.yaml");
  EXPECT_EQ(line->overrides, std::vector<std::string>{"run.seed=1"});
  EXPECT_THAT(Parse({"bench", "--help"})->help_text, ::testing::HasSubstr("one of tenants, links"));
}

TEST(CommandLine, TakesPaths) {
  const absl::StatusOr<CommandLine> line = Parse({"inspect", "a", "b/c"});
  ASSERT_THAT(line, IsOk());
  EXPECT_EQ(line->paths, (std::vector<std::string>{"a", "b/c"}));
}

TEST(CommandLine, ShowsHelpAndVersion) {
  absl::StatusOr<CommandLine> line = Parse({"--help"});
  ASSERT_THAT(line, IsOk());
  EXPECT_TRUE(line->show_help);
  EXPECT_EQ(line->command, "");
  EXPECT_THAT(line->help_text, ::testing::HasSubstr("inspect"));
  EXPECT_THAT(line->help_text, ::testing::HasSubstr("USR2"));
  line = Parse({"train", "--help"});
  ASSERT_THAT(line, IsOk());
  EXPECT_TRUE(line->show_help);
  EXPECT_EQ(line->command, "train");
  EXPECT_THAT(line->help_text, ::testing::HasSubstr("--config"));
  EXPECT_THAT(line->help_text, ::testing::HasSubstr("USR2"));
  EXPECT_THAT(Parse({"plan", "--help"})->help_text, ::testing::Not(::testing::HasSubstr("USR2")));
  line = Parse({"--version"});
  ASSERT_THAT(line, IsOk());
  EXPECT_TRUE(line->show_version);
}

struct BadLine {
  const char* name;
  std::vector<const char*> arguments;
  const char* message;
};

class CommandLineRefuses : public ::testing::TestWithParam<BadLine> {};

TEST_P(CommandLineRefuses, InOneLine) {
  const absl::StatusOr<CommandLine> line = Parse(GetParam().arguments);
  EXPECT_THAT(line, FailsWith(ErrorKind::kUsage, GetParam().message));
  EXPECT_THAT(line, FailsWith(ErrorKind::kUsage, "command line: "));
  EXPECT_EQ(std::string(line.status().message()).find('\n'), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(
    Rows, CommandLineRefuses,
    ::testing::Values(
        BadLine{"Nothing", {}, "no command, must be one of train, plan, bench, inspect"},
        BadLine{"UnknownCommand",
                {"trian", "--config", "a"},
                "`trian`, must be one of train, plan, bench, inspect; did you mean `train`?"},
        BadLine{"UnknownFlag", {"train", "--config", "a", "--resume"}, "--resume"},
        BadLine{"UnknownGlobalFlag", {"--verbose"}, "--verbose"},
        BadLine{"FlagTwice", {"train", "--config", "a", "--config", "b"}, "--config"},
        BadLine{"VersionTwice", {"--version", "--version"}, "--version"},
        BadLine{"ValueMissing", {"train", "--config"}, "--config"},
        BadLine{"ConfigMissing", {"train", "run.seed=1"}, "--config"},
        BadLine{"NotAnAssignment",
                {"train", "--config", "a", "resume"},
                "found `resume`, must be section.key=value"},
        BadLine{"NoSection",
                {"train", "--config", "a", "lr=1"},
                "found `lr=1`, must be section.key=value"},
        BadLine{"Newline", {"train", "--config", "a", "x\ny"}, "section.key=value"},
        BadLine{"TwoCommands", {"train", "--config", "a", "plan"}, "plan"},
        BadLine{"TopicMissing",
                {"bench"},
                "bench: found nothing, must be followed by one of tenants, links"},
        BadLine{"UnknownTopic",
                {"bench", "speed", "--config", "a"},
                "bench: found `speed`, must be followed by one of tenants, links"},
        BadLine{"ConfigOfTopicMissing", {"bench", "links"}, "--config is required"},
        BadLine{"PathMissing", {"inspect"}, "PATH"}),
    [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace graft::launch
