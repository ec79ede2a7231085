// `graft bench MEASUREMENT`: built-in measurements. `tenants`: what many adapters on one backbone
// cost while decoding; writes <run.output>/tenants.json, and a table to stdout.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json_writer.h"
#include "base/logging.h"
#include "base/status.h"
#include "launch/commands.h"
#include "trainer/loaded_model.h"
#include "trainer/tenants/bench.h"

namespace graft::launch {

absl::Status BenchCommand(CommandContext& context) {
  const trainer::Recipe& recipe = context.recipe;
  if (recipe.task.type != "causal_lm") {
    return RecipeError(absl::StrCat("task.type: found \"", recipe.task.type,
                                    "\", `graft bench tenants` serves texts; allowed: causal_lm"));
  }
  trainer::Recipe bare = recipe;  // adapters come and go beside it
  bare.adapter = {};
  bare.method_fields.clear();
  GRAFT_RETURN_IF_ERROR(MakeDirs(recipe.run.output));
  GRAFT_ASSIGN_OR_RETURN(const auto model, trainer::LoadedModel::Load(bare, context.world, {}));
  GRAFT_ASSIGN_OR_RETURN(const auto results,
                         trainer::RunTenantBench(recipe, *model, recipe.run.output));
  const std::string path = JoinPath(recipe.run.output, "tenants.json");
  GRAFT_RETURN_IF_ERROR(AtomicWriteFile(path, results.dump(1) + "\n"));
  std::fputs(trainer::TenantTableText(results).c_str(), stdout);
  LOG(INFO) << "results in " << path;
  return absl::OkStatus();
}

}  // namespace graft::launch
