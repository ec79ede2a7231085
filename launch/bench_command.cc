// `graft bench MEASUREMENT`: built-in measurements. Each writes <run.output>/MEASUREMENT.json, and
// a table to stdout.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json_writer.h"
#include "base/logging.h"
#include "base/status.h"
#include "comm/agree.h"
#include "launch/commands.h"
#include "trainer/bench/collectives.h"
#include "trainer/bench/schedules.h"
#include "trainer/loaded_model.h"
#include "trainer/tenants/bench.h"

namespace graft::launch {
namespace {

using Json = nlohmann::ordered_json;

absl::StatusOr<Json> MeasureTenants(const trainer::Recipe& recipe, comm::World& world) {
  if (recipe.task.type != "causal_lm") {
    return RecipeError(absl::StrCat("task.type: found \"", recipe.task.type,
                                    "\", `graft bench tenants` serves texts; allowed: causal_lm"));
  }
  trainer::Recipe bare = recipe;  // adapters come and go beside it
  bare.adapter = {};
  bare.method_fields.clear();
  GRAFT_ASSIGN_OR_RETURN(const auto model, trainer::LoadedModel::Load(bare, world, {}));
  return trainer::RunTenantBench(recipe, *model, recipe.run.output);
}

struct Measurement {
  std::string name;
  bool many_ranks;                    // on those of the recipe; else on one
  std::vector<std::string> required;  // recipe keys that it cannot do without
  absl::StatusOr<Json> (*measure)(const trainer::Recipe&, comm::World&);  // the same on all ranks
  std::string (*table)(const Json&);
};

const std::vector<Measurement>& Measurements() {
  static const std::vector<Measurement> measurements = {
      {"tenants", false, {"model"}, &MeasureTenants, &trainer::TenantTableText},
      {"collectives", true, {}, &trainer::MeasureCollectives, &trainer::CollectivesTable},
      {"schedules",
       true,
       {"model", "adapter.method"},
       &trainer::MeasureSchedules,
       &trainer::SchedulesTable},
  };
  return measurements;
}

}  // namespace

std::vector<std::string> BenchTopics() {
  std::vector<std::string> names;
  for (const Measurement& measurement : Measurements()) names.push_back(measurement.name);
  return names;
}

bool IsOnOneRank(const std::string& topic) {
  const std::vector<Measurement>& all = Measurements();
  return std::any_of(all.begin(), all.end(), [&topic](const Measurement& measurement) {
    return measurement.name == topic && !measurement.many_ranks;
  });
}

absl::Status BenchCommand(CommandContext& context) {
  const trainer::Recipe& recipe = context.recipe;
  for (const Measurement& measurement : Measurements()) {
    if (measurement.name != context.topic) continue;
    GRAFT_RETURN_IF_ERROR(trainer::RequireKeys(recipe, measurement.required,
                                               absl::StrCat("bench ", measurement.name)));
    const bool writes = context.world.rank() == 0;
    comm::Communicator& all = context.world.all();
    GRAFT_RETURN_IF_ERROR(
        comm::AgreeOnStatus(all, writes ? MakeDirs(recipe.run.output) : absl::OkStatus()));
    GRAFT_ASSIGN_OR_RETURN(const Json results, measurement.measure(recipe, context.world));
    absl::Status status;
    if (writes) {
      const std::string path = JoinPath(recipe.run.output, measurement.name + ".json");
      status = AtomicWriteFile(path, results.dump(1) + "\n");
      std::fputs(measurement.table(results).c_str(), stdout);
      LOG(INFO) << "results in " << path;
    }
    return comm::AgreeOnStatus(all, status);
  }
  return BugError(absl::StrCat("no measurement `", context.topic, "`"));
}

}  // namespace graft::launch
