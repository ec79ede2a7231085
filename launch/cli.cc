#include "launch/cli.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::launch {
namespace {

std::string CheckAssignment(const std::string& text) {
  const std::size_t equals = text.find('=');
  const std::size_t dot = text.find('.');
  if (equals != std::string::npos && dot != std::string::npos && dot < equals) return "";
  return absl::StrCat("found `", Printable(text), "`, must be section.key=value");
}

constexpr char kSignals[] =
    "Signals to train and score:\n"
    "  USR1, TERM, INT  finish the step, save the state, end with exit code 75\n"
    "  INT twice        end at once; the last checkpoint is valid\n"
    "  USR2             each rank writes its flight recorder to <run.output>/flight and goes on";

void AddCommand(const CommandUsage& usage, CLI::App& app, CommandLine* line) {
  CLI::App* const command = app.add_subcommand(usage.name, usage.help);
  if (usage.takes_signals) command->footer(kSignals);
  if (!usage.takes_recipe) {
    command->add_option("PATH", line->paths, "model folder, data set, adapter or checkpoint")
        ->required();
    return;
  }
  if (!usage.topics.empty()) {
    command
        ->add_option("MEASUREMENT", line->topic, absl::StrCat("one of ", JoinNames(usage.topics)))
        ->type_name("");
  }
  command->add_option("--config", line->config, "the recipe (YAML)")
      ->required(usage.topics.empty())
      ->type_name("FILE");
  command->add_option("section.key=value", line->overrides, "keys that replace the recipe's")
      ->check(CLI::Validator(CheckAssignment, ""))
      ->type_name("");
}

// The measurement, then the recipe: of both missing the first one is named, with what is allowed.
absl::Status CheckTopic(const CommandLine& line, const std::vector<CommandUsage>& commands) {
  for (const CommandUsage& usage : commands) {
    if (usage.name != line.command || usage.topics.empty()) continue;
    if (std::find(usage.topics.begin(), usage.topics.end(), line.topic) == usage.topics.end()) {
      return UsageError(absl::StrCat(
          "command line: ", usage.name, ": found ",
          line.topic.empty() ? "nothing" : absl::StrCat("`", Printable(line.topic), "`"),
          ", must be followed by one of ", JoinNames(usage.topics)));
    }
    if (line.config.empty()) return UsageError("command line: --config is required");
  }
  return absl::OkStatus();
}

std::string OneLine(const std::string& text) {
  return Printable(absl::StrReplaceAll(text, {{"\r", ""}, {"\n", "; "}}), 400);
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv,
                                             const std::vector<CommandUsage>& commands) {
  CommandLine line;
  CLI::App app("Fine-tunes small adapters on a frozen language model, on one machine or many.",
               "graft");
  std::vector<std::string> names;
  for (const CommandUsage& usage : commands) {
    AddCommand(usage, app, &line);
    names.push_back(usage.name);
  }
  app.add_flag("--version", line.show_version, "show the versions of graft, LibTorch, MPI, NCCL")
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  app.require_subcommand(0, 1);
  // CLI11 would call a misspelt command an extra argument.
  if (argc > 1 && argv[1][0] != '-' &&
      std::find(names.begin(), names.end(), argv[1]) == names.end()) {
    return UsageError(absl::StrCat("command line: found command `", Printable(argv[1]),
                                   "`, must be one of ", JoinNames(names),
                                   DidYouMean(argv[1], names)));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    line.show_help = true;
  } catch (const CLI::ParseError& error) {
    return UsageError(absl::StrCat("command line: ", OneLine(error.what())));
  }
  for (const CLI::App* command : app.get_subcommands()) line.command = command->get_name();
  if (line.show_help) {
    if (line.command.empty()) app.footer(kSignals);
    line.help_text = app.help();
  }
  if (!line.show_help) GRAFT_RETURN_IF_ERROR(CheckTopic(line, commands));
  if (line.command.empty() && !line.show_help && !line.show_version) {
    return UsageError(absl::StrCat("command line: no command, must be one of ", JoinNames(names),
                                   " (graft --help)"));
  }
  return line;
}

}  // namespace graft::launch
