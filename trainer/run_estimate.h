// What a recipe's run costs by the cost model (sharding/cost_model.h): what `graft plan` reports
// before anything is loaded, what a run expects of its memory, and the FLOP of the samples that a
// step has taken, for the MFU in metrics.jsonl.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "models/model_config.h"
#include "sharding/cost_model.h"
#include "sharding/plan_report.h"
#include "trainer/config.h"
#include "trainer/data/dataset.h"
#include "trainer/loaded_model.h"

namespace graft::trainer {

// Of a rank and step; the last one may be smaller.
int64_t MicroBatchesOf(const Recipe& recipe);

// `on_gpu`: where the tensors live. Without what is measured: flop_per_second, and on a CPU
// base_bytes. Kind input from a prompt encoder's folder.
absl::StatusOr<sharding::PlanWork> PlanWorkOf(const Recipe& recipe, const AdapterChoice& adapter,
                                              const WorkShape& shape, bool on_gpu);

struct FlopCount {
  double model = 0;     // what has to be computed: 4P rule, nothing twice (performance.md 1.1)
  double hardware = 0;  // with the forward passes that model.recompute runs again
};

// Of samples, each by its own length. `model` must outlive this.
class SampleFlop {
 public:
  // Throws kind input when the folder of a prompt encoder has gone since it was loaded.
  SampleFlop(const Recipe& recipe, const LoadedModel& model);
  FlopCount Of(const Dataset& data, const std::vector<int64_t>& samples) const;

 private:
  const models::ModelConfig& config_;
  sharding::WorkShape work_;
  const bool recompute_;
  const int64_t virtual_rows_;
  std::optional<models::ModelConfig> encoder_;  // a prompt encoder of its own
  bool trains_encoder_ = false;
};

}  // namespace graft::trainer
