// The command line: `graft <command> --config recipe.yaml [section.key=value ...]`, `graft inspect
// PATH...`, --help, --version. It only takes the line apart; main.cc acts on it. Used by main.cc.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace graft::launch {

// What the command line needs to know of a command.
struct CommandUsage {
  std::string name;
  std::string help;          // one line
  bool takes_recipe = true;  // else it takes paths
  bool takes_signals = false;
  std::vector<std::string> topics = {};  // one of them follows the command's name; empty: none does
};

struct CommandLine {
  std::string command;
  std::string topic;                   // of a command that has some
  std::string config;                  // recipe file
  std::vector<std::string> overrides;  // section.key=value
  std::vector<std::string> paths;
  bool show_version = false;
  bool show_help = false;  // help_text, and the recipe keys when `command` takes a recipe
  std::string help_text;
};

// Error kind usage: unknown command or flag, flag twice, value missing, argument that is not
// section.key=value.
absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv,
                                             const std::vector<CommandUsage>& commands);

}  // namespace graft::launch
