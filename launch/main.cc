// The program `graft`: takes the command line apart, joins the other ranks, reads the recipe and
// runs one command inside the guard.
#include <sys/resource.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "adapters/adapter.h"
#include "base/file.h"
#include "base/logging.h"
#include "base/mapped_file.h"
#include "base/signals.h"
#include "base/status.h"
#include "base/version.h"
#include "comm/agree.h"
#include "launch/cli.h"
#include "launch/commands.h"
#include "launch/guard.h"
#include "trainer/memory.h"

namespace graft::launch {
namespace {

struct Command {
  CommandUsage usage;
  absl::Status (*run)(CommandContext&);
  bool many_ranks;  // runs on the data x pipeline ranks of the recipe; else on one
  std::vector<std::string> required;  // recipe keys that it cannot do without
};

const std::vector<Command>& Commands() {
  static const std::vector<Command> commands = {
      {{"train", "fine-tune the adapter", true, true},
       &TrainCommand,
       true,
       {"model", "data.train", "adapter.method"}},
      {{"score", "importance of each LoRA module; writes importance.json, setting.json", true,
        true},
       &ScoreCommand,
       true,
       {}},
      {{"eval", "evaluate adapter.init_from on data.eval; JSON on stdout", true},
       &EvalCommand,
       true,
       {"model", "data.eval"}},
      {{"generate", "answer the prompts of data.eval; writes generations.jsonl", true},
       &GenerateCommand,
       true,
       {"model", "data.eval"}},
      {{"prompt", "write what the method makes of each prompt of data.eval as adapters", true},
       &PromptCommand,
       true,
       {"model", "data.eval", "adapter.method"}},
      {{"export", "checkpoint -> adapter folder, or a merged model folder", true},
       &ExportCommand,
       false,
       {"export.from", "export.to"}},
      {{"plan", "show stages, memory and step time of a run without its weights", true},
       &PlanCommand,
       false,
       {"model"}},
      {{"bench",
        "measure this machine: tenants = many adapters on one backbone, collectives = the network "
        "between ranks, schedules = a pipeline under each schedule",
        true, false, BenchTopics()},
       &BenchCommand,
       true,
       {}},
      {{"inspect", "say what a model, data set, adapter or checkpoint holds", false},
       &InspectCommand,
       false,
       {}},
  };
  return commands;
}

const Command* FindCommand(const std::string& name) {
  for (const Command& command : Commands()) {
    if (command.usage.name == name) return &command;
  }
  return nullptr;
}

absl::StatusOr<VisitFunction> VisitMethod(const std::string& name) {
  GRAFT_ASSIGN_OR_RETURN(std::shared_ptr<adapters::Method> method, adapters::NewMethod(name));
  return VisitFunction([method](FieldVisitor& visitor) { method->VisitFields(visitor); });
}

trainer::MethodKeys RegisteredMethods() { return {adapters::MethodNames(), &VisitMethod}; }

void PrintHelp(const CommandLine& line) {
  std::fputs(line.help_text.c_str(), stdout);
  const Command* const command = FindCommand(line.command);
  if (command == nullptr || !command->usage.takes_recipe) return;
  std::printf("\nRecipe keys, each with its default:\n%s",
              trainer::RecipeHelp(RegisteredMethods()).c_str());
}

void PrintVersion() {
  std::printf("graft %s\nLibTorch %s\n%s\n", Version(), TORCH_VERSION, comm::MpiVersion());
  for (const auto& [name, version] :
       {std::pair<std::string, std::string>{"NCCL", comm::NcclVersion()},
        {"CUDA", comm::CudaVersion()}}) {
    std::printf("%s%s\n", absl::StartsWith(version, name) ? "" : (name + " ").c_str(),
                version.c_str());
  }
}

// A core dump of a run holds the model and the data.
void ForbidCoreDumps() {
  const struct rlimit none {};
  ::setrlimit(RLIMIT_CORE, &none);
}

absl::Status ReadRecipe(const Command& command, const CommandLine& line, CommandContext& context) {
  GRAFT_ASSIGN_OR_RETURN(context.recipe,
                         trainer::LoadRecipe(line.config, line.overrides, RegisteredMethods()));
  GRAFT_RETURN_IF_ERROR(trainer::RequireKeys(context.recipe, command.required, command.usage.name));
  if (!context.recipe.run.core) ForbidCoreDumps();
  for (const std::string& warning : context.recipe.warnings) {
    if (context.world.rank() == 0) LOG(WARNING) << warning;
  }
  return absl::OkStatus();
}

void StartWatchdog(CommandContext& context) {
  const trainer::Recipe& recipe = context.recipe;
  comm::WatchdogOptions options;
  options.limits = {.setup_seconds = recipe.watchdog.setup_seconds,
                    .step_seconds = recipe.watchdog.step_seconds,
                    .save_seconds = recipe.watchdog.save_seconds,
                    .exit_seconds = recipe.watchdog.exit_seconds};
  options.grid = {.data = static_cast<int>(recipe.parallel.data),
                  .pipeline = static_cast<int>(recipe.parallel.pipeline)};
  options.flight_folder = JoinPath(recipe.run.output, "flight");
  options.print = &WriteLastLine;
  context.world.StartWatchdog(options);
}

absl::Status RunCommand(const absl::StatusOr<CommandLine>& line, comm::World& world) {
  GRAFT_RETURN_IF_ERROR(line.status());
  const Command& command = *FindCommand(line->command);
  CommandContext context{world, {}, line->paths, line->topic};
  if (command.usage.takes_recipe) {
    GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(world.all(), ReadRecipe(command, *line, context)));
  }
  const bool many_ranks = command.many_ranks && !IsOnOneRank(line->topic);
  if (many_ranks) {
    GRAFT_RETURN_IF_ERROR(trainer::ValidateWorld(context.recipe, world.size()));
  } else if (world.size() != 1) {
    return UsageError(absl::StrCat("command line: `graft ", line->command,
                                   line->topic.empty() ? "" : " ", line->topic, "` was started on ",
                                   world.size(), " ranks, must be 1"));
  }
  if (many_ranks) StartWatchdog(context);
  return command.run(context);
}

// The exit codes that a flight recorder helps to explain (reliability.md 4.2).
bool WantsFlight(int code) {
  return code == ExitCode(ErrorKind::kBug) || code == ExitCode(ErrorKind::kPeer) ||
         code == ExitCode(ErrorKind::kNumeric);
}

int Main(int argc, char** argv) {
  trainer::KeepFreedMemory();
  InitLogging("graft");
  InstallBusErrorHandler();
  std::vector<CommandUsage> usages;
  for (const Command& command : Commands()) usages.push_back(command.usage);
  const absl::StatusOr<CommandLine> line = ParseCommandLine(argc, argv, usages);
  if (line.ok() && line->show_help) return PrintHelp(*line), 0;
  if (line.ok() && line->show_version) return PrintVersion(), 0;
  if (line.ok() && FindCommand(line->command)->usage.takes_signals) InstallStopHandlers();

  const absl::StatusOr<std::unique_ptr<comm::World>> world = comm::World::Create();
  if (!world.ok()) {
    PrintLastLine(world.status());
    return ExitCodeOf(world.status());
  }
  comm::World& ranks = **world;
  if (ranks.size() > 1) SetLogRank(ranks.rank());
  const int code = RunGuarded(
      ranks.all(), [&] { return RunCommand(line, ranks); }, {},
      [&](const absl::Status& error) {
        ranks.DumpFlight(std::string(error.message()), comm::World::FlightScope::kNode);
      });
  if (WantsFlight(code)) {
    ranks.DumpFlight(absl::StrCat("exit code ", code), comm::World::FlightScope::kSelf);
  }
  return code;
}

}  // namespace
}  // namespace graft::launch

int main(int argc, char** argv) { return graft::launch::Main(argc, argv); }
