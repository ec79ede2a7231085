#include "trainer/bench/schedules.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/logging.h"
#include "base/philox.h"
#include "base/status.h"
#include "sharding/plan_report.h"
#include "trainer/bench/timing.h"
#include "trainer/loaded_model.h"
#include "trainer/run_estimate.h"

namespace graft::trainer {
namespace {

using Json = nlohmann::ordered_json;

absl::Status CheckRecipe(const Recipe& recipe) {
  if (recipe.parallel.pipeline == 1) {
    return RecipeError(
        "parallel.pipeline: found 1, `graft bench schedules` compares pipelines; allowed: 2 or "
        "more stages on as many ranks (mpirun, srun)");
  }
  if (recipe.task.type != "causal_lm") {
    return RecipeError(absl::StrCat("task.type: found \"", recipe.task.type,
                                    "\", `graft bench schedules` makes texts; allowed: "
                                    "causal_lm"));
  }
  return absl::OkStatus();
}

Recipe WithSchedule(const Recipe& recipe, const std::string& schedule) {
  Recipe one = recipe;
  one.parallel.schedule = schedule;
  return one;
}

int64_t MicroBatchesOf(const Recipe& recipe) {
  const int64_t share = recipe.optim.global_batch / recipe.parallel.data;
  return std::max<int64_t>(1, share / recipe.optim.micro_batch);
}

// Before any is measured: its micro-batches can be dealt out.
absl::Status CheckSchedule(const Recipe& recipe) {
  sharding::ScheduleShape shape;
  GRAFT_ASSIGN_OR_RETURN(shape.kind, sharding::ParseSchedule(recipe.parallel.schedule));
  shape.stages = static_cast<int>(recipe.parallel.pipeline);
  shape.chunks = static_cast<int>(recipe.parallel.parts_per_stage());
  shape.micro_batches = static_cast<int>(MicroBatchesOf(recipe));
  shape.backward.assign(static_cast<size_t>(shape.stages * shape.chunks), true);
  return sharding::BuildSchedule(shape).status();
}

// Samples of `length` random tokens, all supervised but the first, a quarter of them the prompt.
models::MicroBatch RandomMicroBatch(int64_t index, int64_t samples, int64_t length,
                                    int64_t virtual_rows, int64_t vocab_size, uint64_t seed) {
  models::MicroBatch batch;
  batch.step = 1;
  batch.index = index;
  for (int64_t i = 0; i < samples; ++i) {
    models::Segment segment;
    segment.sample_id = index * samples + i;
    segment.begin = batch.num_rows();
    segment.length = virtual_rows + length;
    segment.prompt_length = std::max<int64_t>(1, length / 4);
    segment.virtual_rows = virtual_rows;
    const uint64_t key =
        PhiloxKey(seed, RandomPurpose::kSampling, static_cast<uint64_t>(segment.sample_id), 0, 0);
    for (int64_t row = 0; row < segment.length; ++row) {
      const double draw = PhiloxUniform(Philox(key, {static_cast<uint32_t>(row), 0, 0, 0})[0]);
      const auto token = static_cast<int64_t>(draw * static_cast<double>(vocab_size));
      batch.tokens.push_back(row < virtual_rows ? 0 : token);
      batch.positions.push_back(row);
      if (row <= virtual_rows) continue;
      batch.target_rows.push_back(segment.begin + row - 1);
      batch.target_ids.push_back(token);
    }
    batch.segments.push_back(segment);
  }
  return batch;
}

struct Work {
  int64_t length = 0, micro_batches = 0;  // of a rank
  std::vector<models::MicroBatch> batches;
};

Work MakeWork(const Recipe& recipe, LoadedModel& model) {
  Work work;
  work.micro_batches = MicroBatchesOf(recipe);
  const int64_t samples =
      std::min(recipe.optim.micro_batch, recipe.optim.global_batch / recipe.parallel.data);
  const int64_t virtual_rows = model.method().virtual_rows();
  work.length = std::min(recipe.bench.length, model.config().max_positions - virtual_rows);
  for (int64_t i = 0; i < work.micro_batches; ++i) {
    work.batches.push_back(RandomMicroBatch(i, samples, work.length, virtual_rows,
                                            model.config().vocab_size,
                                            static_cast<uint64_t>(recipe.run.seed)));
  }
  return work;
}

// Steps under the recipe's schedule; the first one, which faults memory in, is left out.
Json TimeSteps(const Recipe& recipe, LoadedModel& model, const Work& work) {
  comm::Communicator& all = model.world().all();
  std::vector<double> seconds, idle;
  for (int64_t step = 0; step <= recipe.bench.repeats; ++step) {
    model.adapters().ZeroGradients();
    double compute = 0;
    const double slowest = SlowestSeconds(
        all, [&] { compute = model.executor().TrainStep(work.batches).compute_seconds; });
    const std::vector<double> of_ranks = FromAllRanks(all, compute);
    if (step == 0) continue;
    seconds.push_back(slowest);
    idle.push_back(1 - std::accumulate(of_ranks.begin(), of_ranks.end(), 0.0) /
                           (static_cast<double>(of_ranks.size()) * slowest));
  }
  const Json spread = SpreadOf(seconds);
  int64_t tokens = 0;
  for (const models::MicroBatch& batch : work.batches)
    tokens += batch.num_rows() * recipe.parallel.data;
  return {{"step_seconds", spread},
          {"tokens_per_second", static_cast<double>(tokens) / spread["median"].get<double>()},
          {"idle_fraction", SpreadOf(idle)}};
}

absl::StatusOr<Json> MeasureSchedule(const Recipe& recipe, comm::World& world) {
  if (world.rank() == 0) LOG(INFO) << "schedule " << recipe.parallel.schedule;
  const WorkShape shape{.sequence_length = recipe.bench.length};
  GRAFT_ASSIGN_OR_RETURN(const auto model,
                         LoadedModel::Load(recipe, world, shape, LoadedModel::Purpose::kTraining));
  const Work work = MakeWork(recipe, *model);
  GRAFT_ASSIGN_OR_RETURN(
      const sharding::PlanWork plan_work,
      PlanWorkOf(recipe, model->adapter_choice(), shape, !model->device().is_cpu()));
  GRAFT_ASSIGN_OR_RETURN(const sharding::PlanEstimate estimate,
                         sharding::EstimatePlan(model->config(), model->plan(), plan_work));
  Json row = {{"schedule", recipe.parallel.schedule},
              {"parts_per_stage", model->plan().chunks},
              {"micro_batches", work.micro_batches},
              {"length", work.length},
              {"plan_idle_fraction", estimate.bubble_fraction}};
  row.update(TimeSteps(recipe, *model, work));
  return row;
}

}  // namespace

absl::StatusOr<Json> MeasureSchedules(const Recipe& recipe, comm::World& world) {
  GRAFT_RETURN_IF_ERROR(CheckRecipe(recipe));
  for (const std::string& schedule : recipe.bench.schedules)
    GRAFT_RETURN_IF_ERROR(CheckSchedule(WithSchedule(recipe, schedule)));
  Json rows = Json::array();
  for (const std::string& schedule : recipe.bench.schedules) {
    GRAFT_ASSIGN_OR_RETURN(Json row, MeasureSchedule(WithSchedule(recipe, schedule), world));
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
