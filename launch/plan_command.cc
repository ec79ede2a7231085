// `graft plan`: what a run would do, without its weights: sites, stage split, memory, bubble, step
// time.
#include <algorithm>
#include <cstdio>

#include <ATen/ATen.h>

#include "base/status.h"
#include "launch/commands.h"
#include "sharding/plan_report.h"
#include "sharding/save_advice.h"
#include "trainer/data/dataset.h"
#include "trainer/device.h"
#include "trainer/loaded_model.h"
#include "trainer/memory.h"
#include "trainer/open_data.h"
#include "trainer/run_estimate.h"
#include "trainer/stopwatch.h"
#include "trainer/summary.h"
#include "trainer/threads.h"

namespace graft::launch {
namespace {

constexpr int64_t kDefaultLength = 512;  // of a sample when the recipe names no data

absl::StatusOr<trainer::WorkShape> ReadWork(CommandContext& context,
                                            const models::ModelConfig& config) {
  const trainer::DataSection& data = context.recipe.data;
  const int64_t row_length = data.packing ? data.row_length : 0;
  if (data.train.empty()) {
    // An encoder-decoder model: half of a sample is its target.
    return trainer::WorkShape{
        .sequence_length =
            row_length > 0 ? row_length : std::min(kDefaultLength, config.max_positions),
        .head_share = config.has_encoder() ? 0.5 : 1.0};
  }
  GRAFT_ASSIGN_OR_RETURN(const auto dataset, trainer::OpenData(context.recipe, data.train,
                                                               "data.train", context.world.all()));
  return trainer::WorkShapeOf(*dataset, row_length);
}

// Of one rank, by a matrix product of the size that a layer has.
double MeasureFlopPerSecond(const models::ModelConfig& config, torch::Dtype dtype,
                            torch::Device device) {
  const int64_t rows = device.is_cpu() ? 512 : 4096,
                width = std::min<int64_t>(config.hidden_size, 4096),
                inner = std::min<int64_t>(config.intermediate_size, 4096);
  const torch::TensorOptions options = torch::TensorOptions(dtype).device(device);
  const torch::Tensor x = at::ones({rows, width}, options), w = at::ones({width, inner}, options);
  const auto multiply = [&] { at::mm(x, w)[0][0].item(); };  // a GPU's product has ended then
  multiply();                                                // first call sets up
  const trainer::Stopwatch clock;
  int64_t count = 0;
  while (clock.Seconds() < 0.2) {
    multiply();
    ++count;
  }
  return 2.0 * static_cast<double>(count * rows * width * inner) / clock.Seconds();
}

// What `work` lacks. A plan for GPUs needs none, but has times only where there is one.
void MeasureWork(const models::ModelConfig& config, torch::Dtype dtype, torch::Device here,
                 sharding::PlanWork* work) {
  if (!work->shape.on_gpu) work->shape.base_bytes = static_cast<double>(trainer::ProgramBytes());
  if (work->shape.on_gpu != here.is_cpu())
    work->flop_per_second = MeasureFlopPerSecond(config, dtype, here);
}

}  // namespace

absl::Status PlanCommand(CommandContext& context) {
  const trainer::Recipe& recipe = context.recipe;
  GRAFT_RETURN_IF_ERROR(trainer::CheckSupported(recipe));
  GRAFT_ASSIGN_OR_RETURN(const models::ModelConfig config, trainer::ReadRecipeModel(recipe));
  GRAFT_ASSIGN_OR_RETURN(const trainer::WorkShape shape, ReadWork(context, config));
  GRAFT_ASSIGN_OR_RETURN(const trainer::AdapterChoice adapter,
                         trainer::ChooseAdapter(recipe, config, shape.outputs));
  GRAFT_ASSIGN_OR_RETURN(const sharding::Plan plan,
                         trainer::MakeRecipePlan(recipe, config, adapter, shape));
  trainer::SetUpThreads(context.world.all(), recipe.parallel.threads);
  const std::string& wanted = recipe.parallel.device;
  GRAFT_ASSIGN_OR_RETURN(
      const torch::Device here,
      trainer::ChooseDevice(wanted == "cuda" ? "auto" : wanted, context.world.all()));
  GRAFT_ASSIGN_OR_RETURN(
      sharding::PlanWork work,
      trainer::PlanWorkOf(recipe, adapter, shape, wanted == "cuda" || !here.is_cpu()));
  MeasureWork(config, trainer::RecipeDtype(recipe), here, &work);
  GRAFT_ASSIGN_OR_RETURN(const sharding::PlanEstimate estimate,
                         sharding::EstimatePlan(config, plan, work));
  const int64_t trainable = adapter.method->CountParameters(adapter.matched);
  std::printf(
      "%s\n%s\n\n%s%s", trainer::SiteMatchTable(*adapter.method, adapter.matched).c_str(),
      trainer::ParameterLine(trainable, trainer::TotalParameters(config, adapter)).c_str(),
      sharding::RenderPlan(config, plan, work, estimate).c_str(),
      sharding::SaveAdviceLine(trainable, work.data * plan.stages, estimate.step_seconds).c_str());
  return absl::OkStatus();
}

}  // namespace graft::launch
