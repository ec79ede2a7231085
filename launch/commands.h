// The commands of the program: each is one function in launch/<name>_command.cc, listed once in
// main.cc. A command returns an error only when every rank returns one (set-up phases end with
// comm::AgreeOnStatus); trouble of a single rank is thrown as StatusError, and the guard then stops
// the whole job (launch/guard.h). Results go to stdout from rank 0, everything else is logged.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "comm/world.h"
#include "trainer/config.h"

namespace graft::launch {

struct CommandContext {
  comm::World& world;
  trainer::Recipe recipe;  // of commands that take one; validated, its required keys present
  std::vector<std::string> paths;  // of `inspect`
  std::string topic;               // of `bench`: what is measured
};

// 1 or more ranks; kind stopped when a signal asked for it and the state is saved.
absl::Status TrainCommand(CommandContext& context);
absl::Status EvalCommand(CommandContext& context);
absl::Status GenerateCommand(CommandContext& context);
absl::Status ScoreCommand(CommandContext& context);  // kind stopped as TrainCommand
absl::Status PromptCommand(CommandContext& context);
absl::Status BenchCommand(CommandContext& context);
std::vector<std::string> BenchTopics();
// Of a topic that is measured on one rank, whatever the recipe's layout.
bool IsOnOneRank(const std::string& topic);
// One rank.
absl::Status ExportCommand(CommandContext& context);
absl::Status PlanCommand(CommandContext& context);
absl::Status InspectCommand(CommandContext& context);

}  // namespace graft::launch
