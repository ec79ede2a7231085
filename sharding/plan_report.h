// What a plan costs before anything is loaded: memory, FLOP, bubble and step time per stage, and
// the table that `graft plan` prints. All numbers come from the cost model and from simulating the
// schedule that the executor will run. No LibTorch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "models/model_config.h"
#include "sharding/cost_model.h"
#include "sharding/plan.h"
#include "sharding/schedule.h"

namespace graft::sharding {

struct PlanWork {
  ScheduleKind schedule = ScheduleKind::k1F1B;
  int data = 1;
  int micro_batches = 1;        // per rank and step
  int64_t sequence_length = 0;  // S
  MemoryShape shape;            // of a micro-batch and of the weights
  // By layer: numbers that the adapter's edits keep for each row (Method::KeptPerRow); empty =
  // none.
  std::vector<int64_t> kept_per_row;
  // A prompt encoder on the stage of the embedding: frozen parameters, or those of `trainable` that
  // are its own, and its FLOP for one micro-batch.
  int64_t encoder_parameters = 0;
  int64_t encoder_packed_parameters = 0;  // of the frozen ones, those also packed for products
  int64_t trained_encoder_parameters = 0;
  double encoder_forward_flop = 0, encoder_backward_flop = 0;
  double flop_per_second = 0;  // of one rank; 0 = unknown: no times
};

struct StageEstimate {
  int64_t frozen_parameters = 0;
  int64_t trainable_parameters = 0;
  int in_flight = 0;
  RankMemory memory;
  double received_weight_bytes = 0;  // shard_weights: in a step, by each rank
  double flop = 0;                   // of one step
};

struct PlanEstimate {
  std::vector<StageEstimate> stages;
  double bubble_fraction = 0;
  double step_flop = 0;     // of all ranks
  double step_seconds = 0;  // 0 = unknown
  double flop_per_token = 0;
  // Of the largest rank.
  double LargestMemory() const;
};

// Error kind recipe from BuildSchedule.
absl::StatusOr<PlanEstimate> EstimatePlan(const models::ModelConfig& config, const Plan& plan,
                                          const PlanWork& work);

// The table, several lines, for people.
std::string RenderPlan(const models::ModelConfig& config, const Plan& plan, const PlanWork& work,
                       const PlanEstimate& estimate);

}  // namespace graft::sharding
