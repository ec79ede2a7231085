#include "sharding/plan.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/hash.h"
#include "base/status.h"
#include "sharding/cost_model.h"

namespace graft::sharding {
namespace {

// The embedding multiplies nothing: it copies T rows. One byte moved counts as much as this many
// FLOP (a processor's usual ratio of arithmetic to memory speed).
constexpr double kFlopPerByte = 100.0;
constexpr double kEmbeddingElementBytes = 2.0;

struct PartCosts {
  std::vector<double> layers;
  double embed = 0, head = 0;
};

PartCosts CostsOf(const models::ModelConfig& config, int first_trained_layer, bool any_trainable,
                  const PlanOptions& options) {
  const auto flop = [&](int layer) {
    return LayerForwardFlop(config, layer, options.sequence_length, options.head_share);
  };
  const double unit = flop(0);
  const double trained = options.recompute ? 3.0 : 2.0;
  PartCosts costs;
  for (int layer = 0; layer < config.num_layers; ++layer) {
    costs.layers.push_back((layer >= first_trained_layer ? trained : 1.0) * flop(layer) / unit);
  }
  costs.embed =
      kFlopPerByte * kEmbeddingElementBytes * static_cast<double>(config.hidden_size) / unit;
  costs.head = (any_trainable ? 2.0 : 1.0) * 2.0 *
               static_cast<double>(HeadMatmulParameters(config)) * options.head_share / unit;
  return costs;
}

// Dynamic programming over contiguous groups: the smallest value of Combine over groups, where a
// group dearer than `limit` is not allowed. squares = false: largest group; true: sum of squares.
class Cutter {
 public:
  Cutter(const std::vector<double>& costs, double first, double last, int parts)
      : layers_(static_cast<int>(costs.size())), parts_(parts), first_(first), last_(last) {
    prefix_.push_back(0);
    for (double cost : costs) prefix_.push_back(prefix_.back() + cost);
  }

  std::vector<int> Cut(bool squares, double limit) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const size_t width = static_cast<size_t>(layers_) + 1;
    std::vector<std::vector<double>> best(static_cast<size_t>(parts_) + 1,
                                          std::vector<double>(width, kInfinity));
    std::vector<std::vector<int>> from(static_cast<size_t>(parts_) + 1, std::vector<int>(width, 0));
    best[0][0] = 0;
    for (int part = 1; part <= parts_; ++part) {
      for (int end = part; end <= layers_; ++end) {
        for (int begin = part - 1; begin < end; ++begin) {
          const double group = Group(part - 1, begin, end);
          if (group > limit) continue;
          const double below = best[Index(part - 1)][Index(begin)];
          const double value = squares ? below + group * group : std::max(below, group);
          if (value < best[Index(part)][Index(end)]) {
            best[Index(part)][Index(end)] = value;
            from[Index(part)][Index(end)] = begin;
          }
        }
      }
    }
    value_ = best[Index(parts_)][Index(layers_)];
    std::vector<int> sizes(Index(parts_));
    for (int part = parts_, end = layers_; part > 0; --part) {
      const int begin = from[Index(part)][Index(end)];
      sizes[Index(part - 1)] = end - begin;
      end = begin;
    }
    return sizes;
  }
  double value() const { return value_; }

 private:
  static size_t Index(int i) { return static_cast<size_t>(i); }
  double Group(int part, int begin, int end) const {
    return prefix_[Index(end)] - prefix_[Index(begin)] + (part == 0 ? first_ : 0.0) +
           (part == parts_ - 1 ? last_ : 0.0);
  }
  int layers_, parts_;
  double first_, last_, value_ = 0;
  std::vector<double> prefix_;
};

absl::Status CheckCounts(int num_layers, const PlanOptions& options) {
  const int parts = options.stages * options.chunks;
  if (options.stages < 1 || options.chunks < 1) {
    return RecipeError(absl::StrCat("parallel.pipeline: found ", options.stages, " stages of ",
                                    options.chunks, " chunks; both must be at least 1"));
  }
  if (parts > num_layers) {
    return RecipeError(absl::StrCat(
        "parallel.pipeline: found ", options.stages, " stages",
        options.chunks > 1 ? absl::StrCat(" of ", options.chunks, " chunks (parallel.chunks)") : "",
        ", but the model has only ", num_layers, " layers; each part needs at least one"));
  }
  if (options.split.empty()) return absl::OkStatus();
  const std::string list = absl::StrCat("[", absl::StrJoin(options.split, ", "), "]");
  if (static_cast<int>(options.split.size()) != parts) {
    return RecipeError(absl::StrCat(
        "parallel.split: found ", options.split.size(), " numbers in ", list, "; needed are ",
        parts,
        options.chunks > 1 ? ", one per stage and chunk (parallel.pipeline * parallel.chunks)"
                           : ", one per stage (parallel.pipeline)"));
  }
  for (int layers : options.split) {
    if (layers < 1) {
      return RecipeError(absl::StrCat("parallel.split: found ", layers, " in ", list,
                                      "; each stage needs at least 1 layer"));
    }
  }
  const int64_t sum = std::accumulate(options.split.begin(), options.split.end(), int64_t{0});
  if (sum != num_layers) {
    return RecipeError(absl::StrCat("parallel.split: the numbers of ", list, " sum to ", sum,
                                    "; the model has ", num_layers, " layers"));
  }
  return absl::OkStatus();
}

int FirstTrainedLayer(const TrainableCounts& trainables, int num_layers) {
  if (trainables.embed > 0) return 0;
  for (int layer = 0; layer < num_layers; ++layer) {
    if (trainables.layers[static_cast<size_t>(layer)] > 0) return layer;
  }
  return num_layers;
}

int64_t TrainablesOf(const StageChunk& part, const TrainableCounts& trainables) {
  int64_t count = (part.embed ? trainables.embed : 0) + (part.head ? trainables.head : 0);
  for (int layer = part.first_layer; layer < part.end_layer(); ++layer) {
    count += trainables.layers[static_cast<size_t>(layer)];
  }
  return count;
}

double CostOf(const StageChunk& part, const PartCosts& costs) {
  double cost = (part.embed ? costs.embed : 0.0) + (part.head ? costs.head : 0.0);
  for (int layer = part.first_layer; layer < part.end_layer(); ++layer) {
    cost += costs.layers[static_cast<size_t>(layer)];
  }
  return cost;
}

}  // namespace

int64_t TrainableCounts::total() const {
  return std::accumulate(layers.begin(), layers.end(), embed + head);
}

bool Plan::StageHasTrainables(int stage) const {
  return std::any_of(parts.begin(), parts.end(), [stage](const StageChunk& part) {
    return part.stage == stage && part.has_trainables;
  });
}

double Plan::StageCost(int stage) const {
  double cost = 0;
  for (const StageChunk& part : parts) cost += part.stage == stage ? part.cost : 0.0;
  return cost;
}

int Plan::WorstStage() const {
  int worst = 0;
  for (int stage = 1; stage < stages; ++stage) {
    if (StageCost(stage) > StageCost(worst)) worst = stage;
  }
  return worst;
}

double Plan::Efficiency() const {
  double sum = 0;
  for (int stage = 0; stage < stages; ++stage) sum += StageCost(stage);
  return sum / stages / StageCost(WorstStage());
}

std::string Plan::Canonical() const {
  std::string text = absl::StrCat("stages ", stages, " chunks ", chunks, " layers ", num_layers,
                                  " first_trained_layer ", first_trained_layer, "\n");
  for (const StageChunk& part : parts) {
    absl::StrAppend(&text, "stage ", part.stage, " chunk ", part.chunk, " layers ",
                    part.first_layer, "+", part.num_layers, " embed ", part.embed, " head ",
                    part.head, " trainable ", part.trainable_parameters, " backward ",
                    part.backward, " input_gradient ", part.input_gradient, "\n");
  }
  return text;
}

std::string Plan::Hash() const { return Sha256Hex(Canonical()); }

std::vector<int> CutByCost(const std::vector<double>& costs, double first, double last, int parts) {
  Cutter cutter(costs, first, last, parts);
  cutter.Cut(/*squares=*/false, std::numeric_limits<double>::infinity());
  const double smallest = cutter.value();
  // Sums of doubles differ in their last bits by the order of the additions.
  return cutter.Cut(/*squares=*/true, smallest * (1 + 1e-9));
}

absl::StatusOr<Plan> MakePlan(const models::ModelConfig& config, const TrainableCounts& trainables,
                              const PlanOptions& options) {
  const int num_layers = static_cast<int>(config.num_layers);
  GRAFT_CHECK(static_cast<int>(trainables.layers.size()) == num_layers,
              absl::StrCat("trainable counts for ", trainables.layers.size(), " of ", num_layers,
                           " layers"));
  GRAFT_RETURN_IF_ERROR(CheckCounts(num_layers, options));
  Plan plan;
  plan.stages = options.stages;
  plan.chunks = options.chunks;
  plan.num_layers = num_layers;
  plan.first_trained_layer = FirstTrainedLayer(trainables, num_layers);
  const PartCosts costs =
      CostsOf(config, plan.first_trained_layer, trainables.total() > 0, options);
  const int parts = plan.stages * plan.chunks;
  const std::vector<int> split = options.split.empty()
                                     ? CutByCost(costs.layers, costs.embed, costs.head, parts)
                                     : options.split;
  bool below = false;
  for (int index = 0, layer = 0; index < parts; ++index) {
    StageChunk part;
    part.stage = index % plan.stages;
    part.chunk = index / plan.stages;
    part.first_layer = layer;
    part.num_layers = split[static_cast<size_t>(index)];
    part.embed = index == 0;
    part.head = index == parts - 1;
    part.trainable_parameters = TrainablesOf(part, trainables);
    part.has_trainables = part.trainable_parameters > 0;
    part.input_gradient = below;
    below = below || part.has_trainables;
    part.backward = below;
    part.cost = CostOf(part, costs);
    layer = part.end_layer();
    plan.parts.push_back(part);
  }
  return plan;
}

}  // namespace graft::sharding
