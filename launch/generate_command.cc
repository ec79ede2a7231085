// `graft generate`: continues the prompts of data.eval; writes <run.output>/generations.jsonl, one
// {sample_id, prompt_tokens, tokens} a line, token ids, in data set order. One JSON object on
// stdout: samples, generated tokens, seconds without the loading of the model, and their quotient.
#include <cstdio>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/logging.h"
#include "base/status.h"
#include "comm/agree.h"
#include "comm/reducer.h"
#include "launch/commands.h"
#include "trainer/generator.h"
#include "trainer/open_data.h"
#include "trainer/stopwatch.h"

namespace graft::launch {
namespace {

std::string LinesOf(const std::vector<trainer::Continuation>& continuations) {
  std::string lines;
  for (const trainer::Continuation& answer : continuations) {
    const nlohmann::ordered_json json = {{"sample_id", answer.sample_id},
                                         {"prompt_tokens", answer.prompt},
                                         {"tokens", answer.tokens}};
    absl::StrAppend(&lines, json.dump(), "\n");
  }
  return lines;
}

absl::Status WriteGenerations(const std::string& output, const std::vector<std::string>& shares) {
  GRAFT_RETURN_IF_ERROR(MakeDirs(output));
  const std::string path = JoinPath(output, "generations.jsonl");
  std::string lines;
  for (const std::string& share : shares) lines += share;
  GRAFT_RETURN_IF_ERROR(AtomicWriteFile(path, lines));
  LOG(INFO) << "answers in " << path;
  return absl::OkStatus();
}

// Samples and generated tokens of the whole job; each replica's last stage counts its own.
comm::ControlVector CountAnswers(trainer::LoadedModel& model,
                                 const std::vector<trainer::Continuation>& answers) {
  comm::ControlVector mine;
  if (model.is_last_stage()) {
    mine.samples = static_cast<double>(answers.size());
    for (const trainer::Continuation& answer : answers) {
      mine.tokens += static_cast<double>(answer.tokens.size());
    }
  }
  return comm::ReduceControl(model.world().all(), mine);
}

void PrintSpeed(const comm::ControlVector& total, double seconds) {
  const nlohmann::ordered_json json = {{"samples", static_cast<int64_t>(total.samples)},
                                       {"tokens", static_cast<int64_t>(total.tokens)},
                                       {"seconds", seconds},
                                       {"tokens_per_second", total.tokens / seconds}};
  std::printf("%s\n", json.dump().c_str());
}

}  // namespace

absl::Status GenerateCommand(CommandContext& context) {
  const trainer::Recipe& recipe = context.recipe;
  if (recipe.task.type != "causal_lm" && recipe.task.type != "seq2seq") {
    return RecipeError(
        absl::StrCat("task.type: found \"", recipe.task.type,
                     "\", `graft generate` writes texts; allowed: causal_lm, seq2seq"));
  }
  GRAFT_RETURN_IF_ERROR(trainer::CheckSupported(recipe));
  GRAFT_RETURN_IF_ERROR(trainer::CheckWholeWeights(recipe, "generate"));
  GRAFT_ASSIGN_OR_RETURN(const auto data, trainer::OpenData(recipe, recipe.data.eval, "data.eval",
                                                            context.world.all()));
  GRAFT_ASSIGN_OR_RETURN(
      const auto model,
      trainer::LoadedModel::Load(recipe, context.world, trainer::WorkShapeOf(*data, 0)));
  GRAFT_RETURN_IF_ERROR(trainer::CheckFitsModel(*data, *model, "data.eval"));
  const trainer::GenerateOptions options = {
      .max_new_tokens = recipe.generate.max_new_tokens,
      .beams = recipe.generate.beams,
      .sampling = {.temperature = recipe.generate.temperature,
                   .top_p = recipe.generate.top_p,
                   .seed = static_cast<uint64_t>(recipe.run.seed)}};
  const int64_t num_samples = trainer::LimitedSize(*data, recipe.data.max_samples);
  const trainer::Stopwatch clock;
  GRAFT_ASSIGN_OR_RETURN(const auto answers,
                         trainer::Generate(*model, *data, num_samples, options));
  const comm::ControlVector total = CountAnswers(*model, answers);
  const double seconds = clock.Seconds();
  // All stages of a replica hold the same answers: the first stages of the data ranks give them in
  // data set order.
  const std::vector<std::string> shares =
      comm::AllGatherStrings(*model->groups().data_group, LinesOf(answers));
  const absl::Status written =
      context.world.rank() == 0 ? WriteGenerations(recipe.run.output, shares) : absl::OkStatus();
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(context.world.all(), written));
  if (context.world.rank() == 0) PrintSpeed(total, seconds);
  return absl::OkStatus();
}

}  // namespace graft::launch
