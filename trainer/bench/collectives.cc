#include "trainer/bench/collectives.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "comm/agree.h"
#include "comm/reducer.h"
#include "sharding/buffer.h"
#include "trainer/bench/timing.h"
#include "trainer/device.h"
#include "trainer/loaded_model.h"

namespace graft::trainer {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kTag = 3;
constexpr int64_t kFirstBytes = 1024, kFactor = 4;
// Small messages are timed several at a time, for the clock and the barrier in front to be small.
constexpr int64_t kBytesAtATime = int64_t{1} << 20, kMostAtATime = 64;

struct Size {
  int64_t bytes = 0;
  std::string of = {};  // what the recipe moves so
};

std::vector<Size> GeneralSizes(int64_t max_bytes) {
  std::vector<Size> sizes = {{sizeof(float)}};
  for (int64_t bytes = kFirstBytes; bytes <= max_bytes; bytes *= kFactor) sizes.push_back({bytes});
  return sizes;
}

class CollectiveBench {
 public:
  CollectiveBench(const Recipe& recipe, comm::World& world, comm::Groups& groups,
                  torch::Device device)
      : recipe_(recipe), world_(world), groups_(groups), device_(device) {}

  comm::Communicator& data() {
    return groups_.device_data_group ? *groups_.device_data_group : *groups_.data_group;
  }
  comm::Communicator& pipeline() {
    return groups_.device_pipeline_group ? *groups_.device_pipeline_group : *groups_.pipeline_group;
  }

  // Of gradients, over each stage's replicas at the same time.
  void AllReduce(const Size& size) {
    const torch::Tensor values = NewValues(size);
    const double n = data().size();
    Add("all-reduce", data(), size, /*share=*/2 * (n - 1) / n,
        [&] { data().AllReduce(sharding::BufferOf(values), comm::ReduceOp::kSum); });
  }

  // There and back over every second boundary of the pipelines, then over the others; of the slower
  // ones, one way.
  void Send(const Size& size) {
    const torch::Tensor values = NewValues(size);
    std::vector<double> seconds(static_cast<size_t>(recipe_.bench.repeats));
    for (const int first : {0, 1}) {
      if (first + 1 >= pipeline().size()) continue;
      const std::vector<double> round_trips = Time(size, [&] { RoundTrip(first, values); });
      for (size_t i = 0; i < seconds.size(); ++i)
        seconds[i] = std::max(seconds[i], round_trips[i] / 2);
    }
    AddRow("send", pipeline(), size, /*share=*/1, seconds);
  }

  // What ends every step, through host memory.
  void Gather() {
    const comm::ControlVector control;
    Add("control vector", world_.all(), {static_cast<int64_t>(sizeof(control))}, /*share=*/0,
        [&] { comm::ReduceControl(world_.all(), control); });
  }
  void Barrier() {
    Add("barrier", world_.all(), {0}, /*share=*/0, [&] { world_.all().Barrier(); });
  }

  Json TakeRows() { return std::move(rows_); }

 private:
  torch::Tensor NewValues(const Size& size) const {
    const auto numbers = std::max<int64_t>(1, size.bytes / static_cast<int64_t>(sizeof(float)));
    return at::zeros({numbers}, torch::TensorOptions(torch::kFloat32).device(device_));
  }

  void RoundTrip(int first, const torch::Tensor& values) {
    const int stage = pipeline().rank();
    const bool asks = stage % 2 == first && stage + 1 < pipeline().size();
    const bool answers = stage % 2 != first && stage > 0;
    const comm::Buffer buffer = sharding::BufferOf(values);
    if (asks) pipeline().Send(buffer, stage + 1, kTag);
    if (answers) pipeline().Recv(buffer, stage - 1, kTag);
    if (answers) pipeline().Send(buffer, stage - 1, kTag);
    if (asks) pipeline().Recv(buffer, stage + 1, kTag);
  }

  // Of each repeat; the first one, which connects, is left out.
  std::vector<double> Time(const Size& size, const std::function<void()>& operation) {
    const int64_t at_a_time =
        std::clamp<int64_t>(kBytesAtATime / std::max<int64_t>(1, size.bytes), 1, kMostAtATime);
    operation();
    std::vector<double> seconds;
    for (int64_t repeat = 0; repeat < recipe_.bench.repeats; ++repeat) {
      const double all = SlowestSeconds(world_.all(), [&] {
        for (int64_t i = 0; i < at_a_time; ++i) operation();
      });
      seconds.push_back(all / static_cast<double>(at_a_time));
    }
    return seconds;
  }

  void Add(const char* operation, comm::Communicator& group, const Size& size, double share,
           const std::function<void()>& run) {
    AddRow(operation, group, size, share, Time(size, run));
  }

  // `share`: bytes that each rank sends, of the message's; 0: no bandwidth.
  void AddRow(const char* operation, comm::Communicator& group, const Size& size, double share,
              const std::vector<double>& seconds) {
    Json row = {{"operation", operation}, {"group", group.name()},
                {"ranks", group.size()},  {"backend", group.backend()},
                {"bytes", size.bytes},    {"seconds", SpreadOf(seconds)}};
    if (!size.of.empty()) row["of"] = size.of;
    if (share > 0) {
      row["bytes_per_second"] =
          share * static_cast<double>(size.bytes) / row["seconds"]["median"].get<double>();
    }
    rows_.push_back(std::move(row));
  }

  const Recipe& recipe_;
  comm::World& world_;
  comm::Groups& groups_;
  const torch::Device device_;
  Json rows_ = Json::array();
};

// What the recipe moves.
struct RecipeSizes {
  std::vector<Size> gradients, hidden_states;
};

// A micro-batch of samples of bench.length, soft prompts in front; of an encoder-decoder model the
// two parts of a sample together.
Size HiddenStatesOf(const Recipe& recipe, const models::ModelConfig& config, int64_t virtual_rows) {
  const int64_t length = std::min(recipe.bench.length + virtual_rows, config.longest_sequence());
  const int64_t bytes = recipe.model.dtype == "bfloat16" ? 2 : 4;
  return {recipe.optim.micro_batch * length * config.hidden_size * bytes,
          absl::StrCat("hidden states of ", recipe.optim.micro_batch, " x ", length, " rows")};
}

// Of the largest stage.
absl::StatusOr<Size> GradientsOf(const Recipe& recipe, const models::ModelConfig& config,
                                 const AdapterChoice& adapter) {
  GRAFT_ASSIGN_OR_RETURN(
      const sharding::Plan plan,
      MakeRecipePlan(recipe, config, adapter, {.sequence_length = recipe.bench.length}));
  std::vector<int64_t> by_stage(static_cast<size_t>(plan.stages));
  for (const sharding::StageChunk& part : plan.parts)
    by_stage[static_cast<size_t>(part.stage)] += part.trainable_parameters;
  const bool has_head = recipe.task.type == "classification" || recipe.task.type == "regression";
  return Size{*std::max_element(by_stage.begin(), by_stage.end()) * 4,
              absl::StrCat("gradients of ", recipe.adapter.method,
                           has_head ? " without the task head" : "")};
}

absl::StatusOr<RecipeSizes> SizesOf(const Recipe& recipe) {
  RecipeSizes sizes;
  if (recipe.model.path.empty() && recipe.model.shape.empty()) return sizes;
  GRAFT_ASSIGN_OR_RETURN(const models::ModelConfig config, ReadRecipeModel(recipe));
  GRAFT_ASSIGN_OR_RETURN(const AdapterChoice adapter, ChooseAdapter(recipe, config, /*outputs=*/0));
  sizes.hidden_states.push_back(HiddenStatesOf(recipe, config, adapter.method->virtual_rows()));
  if (adapter.method->CountParameters(adapter.matched) == 0) return sizes;
  GRAFT_ASSIGN_OR_RETURN(const Size gradients, GradientsOf(recipe, config, adapter));
  sizes.gradients.push_back(gradients);
  return sizes;
}

std::string SizeText(int64_t bytes) {
  if (bytes >= 1 << 20) return absl::StrFormat("%.4g MiB", static_cast<double>(bytes) / (1 << 20));
  if (bytes >= 1 << 10) return absl::StrFormat("%.4g KiB", static_cast<double>(bytes) / (1 << 10));
  return absl::StrCat(bytes, " B");
}

}  // namespace

absl::StatusOr<Json> MeasureCollectives(const Recipe& recipe, comm::World& world) {
  if (world.size() == 1) {
    return RecipeError(
        "parallel.data: data x pipeline = 1, `graft bench collectives` measures what ranks do "
        "together; allowed: 2 or more ranks (mpirun, srun)");
  }
  const absl::StatusOr<RecipeSizes> of_recipe = SizesOf(recipe);
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(world.all(), of_recipe.status()));
  GRAFT_ASSIGN_OR_RETURN(
      comm::Groups groups,
      world.MakeGroups({.data = static_cast<int>(recipe.parallel.data),
                        .pipeline = static_cast<int>(recipe.parallel.pipeline)}));
  GRAFT_ASSIGN_OR_RETURN(const torch::Device device, ChooseHardware(recipe, world, &groups));
  CollectiveBench bench(recipe, world, groups, device);
  std::vector<Size> gradients = GeneralSizes(recipe.bench.max_bytes), hidden_states = gradients;
  gradients.insert(gradients.end(), of_recipe->gradients.begin(), of_recipe->gradients.end());
  hidden_states.insert(hidden_states.end(), of_recipe->hidden_states.begin(),
                       of_recipe->hidden_states.end());
  if (recipe.parallel.data > 1) {
    for (const Size& size : gradients) bench.AllReduce(size);
  }
  if (recipe.parallel.pipeline > 1) {
    for (const Size& size : hidden_states) bench.Send(size);
  }
  bench.Gather();
  bench.Barrier();
  return Json{{"format", "graft-collectives"}, {"version", 1},
              {"ranks", world.size()},         {"ranks_of_this_node", world.local_size()},
              {"data", recipe.parallel.data},  {"pipeline", recipe.parallel.pipeline},
              {"device", device.str()},        {"mpi", comm::MpiVersion()},
              {"nccl", comm::NcclVersion()},   {"repeats", recipe.bench.repeats},
              {"rows", bench.TakeRows()}};
}

std::string CollectivesTable(const Json& results) {
  std::string text =
      absl::StrFormat("%-15s %-10s %5s %-6s %10s %12s %12s %10s  %s\n", "operation", "group",
                      "ranks", "over", "size", "median us", "max us", "GB/s", "of the recipe");
  for (const Json& row : results["rows"]) {
    const double speed = row.value("bytes_per_second", 0.0);
    absl::StrAppendFormat(
        &text, "%-15s %-10s %5d %-6s %10s %12.1f %12.1f %10s  %s\n",
        row["operation"].get<std::string>(), row["group"].get<std::string>(),
        row["ranks"].get<int>(), row["backend"].get<std::string>(),
        SizeText(row["bytes"].get<int64_t>()), 1e6 * row["seconds"]["median"].get<double>(),
        1e6 * row["seconds"]["max"].get<double>(),
        speed > 0 ? absl::StrFormat("%.2f", speed / 1e9) : "", row.value("of", ""));
  }
  return text;
}

}  // namespace graft::trainer
