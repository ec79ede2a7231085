#include "trainer/bench/schedules.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/logging.h"
#include "base/philox.h"
#include "base/status.h"
#include "comm/agree.h"
#include "sharding/plan_report.h"
#include "trainer/bench/timing.h"
#include "trainer/loaded_model.h"
#include "trainer/run_estimate.h"

namespace graft::trainer {
namespace {

using Json = nlohmann::ordered_json;

// Of one schedule, before any is measured: what it runs on.
struct Case {
  Recipe recipe;
  int64_t length = 0;  // of a sample, soft prompt's rows apart
};

absl::Status CheckRecipe(const Recipe& recipe) {
  const auto refuse = [](const std::string& key, const std::string& found, const char* allowed) {
    return RecipeError(
        absl::StrCat(key, ": found ", found, " in `graft bench schedules`; allowed: ", allowed));
  };
  if (recipe.parallel.pipeline == 1)
    return refuse("parallel.pipeline", "1", "2 or more stages on as many ranks (mpirun, srun)");
  if (recipe.task.type != "causal_lm") return refuse("task.type", recipe.task.type, "causal_lm");
  if (recipe.adapter.method == "none") return refuse("adapter.method", "none", "one that trains");
  const std::vector<std::string>& schedules = recipe.bench.schedules;
  const std::set<std::string> different(schedules.begin(), schedules.end());
  if (schedules.empty() || different.size() < schedules.size()) {
    return refuse("bench.schedules", absl::StrCat("[", absl::StrJoin(schedules, ", "), "]"),
                  "one or more of gpipe, 1f1b, interleaved, each once");
  }
  return absl::OkStatus();
}

absl::StatusOr<Case> CheckCase(const Recipe& recipe, const std::string& schedule) {
  Case found{recipe, 0};
  found.recipe.parallel.schedule = schedule;
  GRAFT_ASSIGN_OR_RETURN(const models::ModelConfig config, ReadRecipeModel(recipe));
  GRAFT_ASSIGN_OR_RETURN(const AdapterChoice adapter, ChooseAdapter(recipe, config, /*outputs=*/0));
  if (adapter.method->prompt_encoder() != nullptr) {
    return RecipeError(
        "adapter.encoder.type: found model, `graft bench schedules` has no texts for it; allowed: "
        "embedding_mean");
  }
  const int64_t virtual_rows = adapter.method->virtual_rows();
  found.length = std::min(recipe.bench.length, config.longest_sequence() - virtual_rows);
  if (found.length < 2) {
    return RecipeError(absl::StrCat("adapter.prompt_length: found ", virtual_rows,
                                    ", the model has room for ", config.longest_sequence(),
                                    " rows; allowed: 2 fewer at most"));
  }
  GRAFT_ASSIGN_OR_RETURN(
      const sharding::Plan plan,
      MakeRecipePlan(found.recipe, config, adapter, {.sequence_length = found.length}));
  sharding::ScheduleShape shape;
  GRAFT_ASSIGN_OR_RETURN(shape.kind, sharding::ParseSchedule(schedule));
  shape.stages = plan.stages;
  shape.chunks = plan.chunks;
  shape.micro_batches = static_cast<int>(MicroBatchesOf(recipe));
  for (const sharding::StageChunk& part : plan.parts) shape.backward.push_back(part.backward);
  GRAFT_RETURN_IF_ERROR(sharding::BuildSchedule(shape).status());
  return found;
}

absl::StatusOr<std::vector<Case>> CheckCases(const Recipe& recipe) {
  GRAFT_RETURN_IF_ERROR(CheckRecipe(recipe));
  std::vector<Case> cases;
  for (const std::string& schedule : recipe.bench.schedules) {
    GRAFT_ASSIGN_OR_RETURN(Case one, CheckCase(recipe, schedule));
    cases.push_back(std::move(one));
  }
  return cases;
}

// A sample of random tokens, all supervised but the first, a quarter of them the prompt.
void AppendSample(int64_t id, int64_t length, const LoadedModel& model, uint64_t seed,
                  models::MicroBatch* batch) {
  models::Segment segment;
  segment.sample_id = id;
  segment.begin = batch->num_rows();
  segment.virtual_rows = model.method().virtual_rows();
  segment.length = segment.virtual_rows + length;
  segment.prompt_length = std::max<int64_t>(1, length / 4);
  const uint64_t key = PhiloxKey(seed, RandomPurpose::kSampling, static_cast<uint64_t>(id), 0, 0);
  for (int64_t row = 0; row < segment.length; ++row) {
    const double draw = PhiloxUniform(Philox(key, {static_cast<uint32_t>(row), 0, 0, 0})[0]);
    const auto token = static_cast<int64_t>(draw * static_cast<double>(model.config().vocab_size));
    batch->tokens.push_back(row < segment.virtual_rows ? 0 : token);
    batch->positions.push_back(row);
    if (row <= segment.virtual_rows) continue;
    batch->target_rows.push_back(segment.begin + row - 1);
    batch->target_ids.push_back(token);
  }
  batch->segments.push_back(segment);
}

// Of a rank and step; the last micro-batch may be smaller.
std::vector<models::MicroBatch> RandomMicroBatches(const Case& one, const LoadedModel& model) {
  const OptimSection& optim = one.recipe.optim;
  const int64_t share = optim.global_batch / one.recipe.parallel.data;
  std::vector<models::MicroBatch> batches(static_cast<size_t>(MicroBatchesOf(one.recipe)));
  for (int64_t id = 0; id < share; ++id) {
    models::MicroBatch& batch = batches[static_cast<size_t>(id / optim.micro_batch)];
    batch.step = 1;
    batch.index = id / optim.micro_batch;
    AppendSample(id, one.length, model, static_cast<uint64_t>(one.recipe.run.seed), &batch);
  }
  return batches;
}

// The first step, which faults memory in, is left out.
Json TimeSteps(const Case& one, LoadedModel& model) {
  const std::vector<models::MicroBatch> batches = RandomMicroBatches(one, model);
  comm::Communicator& all = model.world().all();
  std::vector<double> seconds, idle;
  for (int64_t step = 0; step <= one.recipe.bench.repeats; ++step) {
    model.adapters().ZeroGradients();
    double compute = 0;
    const double slowest =
        SlowestSeconds(all, [&] { compute = model.executor().TrainStep(batches).compute_seconds; });
    const std::vector<double> of_ranks = FromAllRanks(all, compute);
    if (step == 0) continue;
    seconds.push_back(slowest);
    idle.push_back(1 - std::accumulate(of_ranks.begin(), of_ranks.end(), 0.0) /
                           (static_cast<double>(of_ranks.size()) * slowest));
  }
  const Json spread = SpreadOf(seconds);
  const auto tokens = static_cast<double>(one.recipe.optim.global_batch * one.length);
  return {{"step_seconds", spread},
          {"tokens_per_second", tokens / spread["median"].get<double>()},
          {"idle_fraction", SpreadOf(idle)}};
}

absl::StatusOr<Json> MeasureCase(const Case& one, comm::World& world) {
  if (world.rank() == 0) LOG(INFO) << "schedule " << one.recipe.parallel.schedule;
  const WorkShape shape{.sequence_length = one.length};
  GRAFT_ASSIGN_OR_RETURN(const auto model, LoadedModel::Load(one.recipe, world, shape,
                                                             LoadedModel::Purpose::kTraining));
  GRAFT_ASSIGN_OR_RETURN(
      const sharding::PlanWork work,
      PlanWorkOf(one.recipe, model->adapter_choice(), shape, !model->device().is_cpu()));
  GRAFT_ASSIGN_OR_RETURN(const sharding::PlanEstimate estimate,
                         sharding::EstimatePlan(model->config(), model->plan(), work));
  Json row = {{"schedule", one.recipe.parallel.schedule},
              {"parts_per_stage", model->plan().chunks},
              {"micro_batches", MicroBatchesOf(one.recipe)},
              {"length", one.length},
              {"plan_idle_fraction", estimate.bubble_fraction}};
  row.update(TimeSteps(one, *model));
  return row;
}

}  // namespace

absl::StatusOr<Json> MeasureSchedules(const Recipe& recipe, comm::World& world) {
  const absl::StatusOr<std::vector<Case>> cases = CheckCases(recipe);
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(world.all(), cases.status()));
  Json rows = Json::array();
  for (const Case& one : *cases) {
    GRAFT_ASSIGN_OR_RETURN(Json row, MeasureCase(one, world));
    rows.push_back(std::move(row));
  }
  return Json{{"format", "graft-schedules"},
              {"version", 1},
              {"ranks", world.size()},
              {"data", recipe.parallel.data},
              {"pipeline", recipe.parallel.pipeline},
              {"model", recipe.model.path.empty() ? recipe.model.shape : recipe.model.path},
              {"dtype", recipe.model.dtype},
              {"method", recipe.adapter.method},
              {"global_batch", recipe.optim.global_batch},
              {"micro_batch", recipe.optim.micro_batch},
              {"repeats", recipe.bench.repeats},
              {"rows", std::move(rows)}};
}

std::string SchedulesTable(const Json& results) {
  std::string text =
      absl::StrFormat("%-12s %6s %13s %10s %10s %10s %10s %10s\n", "schedule", "parts",
                      "micro-batches", "step s", "spread", "tokens/s", "idle", "plan says");
  for (const Json& row : results["rows"]) {
    const Json& seconds = row["step_seconds"];
    const double median = seconds["median"];
    absl::StrAppendFormat(
        &text, "%-12s %6d %13d %10.4f %9.0f%% %10.0f %9.1f%% %9.1f%%\n",
        row["schedule"].get<std::string>(), row["parts_per_stage"].get<int>(),
        row["micro_batches"].get<int64_t>(), median,
        100 * (seconds["max"].get<double>() - seconds["min"].get<double>()) / median,
        row["tokens_per_second"].get<double>(), 100 * row["idle_fraction"]["median"].get<double>(),
        100 * row["plan_idle_fraction"].get<double>());
  }
  return text;
}

}  // namespace graft::trainer
