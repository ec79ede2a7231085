// Which rank runs which layers. Cuts the L layers over `stages` ranks of a pipeline times `chunks`
// parts per rank, from the model alone: the same recipe gives the same cut on every rank and
// machine. Used by stage, executor and `plan`. No LibTorch, no MPI.
//
// A part is called virtual stage here: virtual stage = chunk * stages + stage, so that the hidden
// state walks over all ranks once per chunk (interleaved schedule; with one chunk a virtual stage
// is a stage).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/model_config.h"

namespace graft::sharding {

// Trainable parameters by unit.
struct TrainableCounts {
  int64_t embed = 0;            // soft prompts and their generators: before the first layer
  std::vector<int64_t> layers;  // one entry per layer
  int64_t head = 0;
  int64_t total() const;
};

// Layers [first_layer, first_layer + num_layers) of one virtual stage, the embedding in front and
// the head behind where said.
struct StageChunk {
  int stage = 0;
  int chunk = 0;
  int first_layer = 0;
  int num_layers = 0;
  bool embed = false;
  bool head = false;
  bool has_trainables = false;
  bool backward = false;  // something trainable here or below: this part runs backward passes
  bool input_gradient =
      false;  // something trainable below: its input's gradient goes to the part below
  int64_t trainable_parameters = 0;
  double cost = 0;  // in forward passes of one layer
  int end_layer() const { return first_layer + num_layers; }
};

struct PlanOptions {
  int stages = 1;
  int chunks = 1;
  // Layers of each virtual stage; empty = cut by cost.
  std::vector<int> split;
  int64_t sequence_length = 0;
  double head_share = 1.0;  // supervised share of the positions
  bool recompute = false;
};

struct Plan {
  int stages = 1;
  int chunks = 1;
  int num_layers = 0;
  // The lowest layer that runs backward: 0 also when something trains before it, num_layers when no
  // layer does.
  int first_trained_layer = 0;
  std::vector<StageChunk> parts;  // by virtual stage

  int VirtualStage(int stage, int chunk) const { return chunk * stages + stage; }
  const StageChunk& Part(int stage, int chunk) const {
    return parts[static_cast<size_t>(VirtualStage(stage, chunk))];
  }
  bool StageHasTrainables(int stage) const;
  double StageCost(int stage) const;
  int WorstStage() const;
  // Mean over largest stage cost: 1 = balanced.
  double Efficiency() const;
  // Every decision, one part a line; two ranks with equal text run the same plan.
  std::string Canonical() const;
  // sha256 of Canonical() in hex, to compare over ranks.
  std::string Hash() const;
};

// Errors: kind recipe when there are more parts than layers, when a manual list has another length,
// a part without layers or another sum than the model's layers.
absl::StatusOr<Plan> MakePlan(const models::ModelConfig& config, const TrainableCounts& trainables,
                              const PlanOptions& options);

// Sizes of `parts` contiguous, non-empty groups of `costs` with the smallest possible largest
// group; among those the most even ones. `first` and `last` are added to the first and the last
// group.
std::vector<int> CutByCost(const std::vector<double>& costs, double first, double last, int parts);

}  // namespace graft::sharding
