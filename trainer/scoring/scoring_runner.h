// Computes work items of `graft score` on one replica: the whole model, or a pipeline whose stages
// all call Run with the same items in the same order (methods.md 16.2). The shapes of every product
// follow from the item alone, so a result has the same bits on any layout. Results: score_plan.h.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/stage_link.h"
#include "models/weights/weight_source.h"
#include "trainer/coordinator/item_runner.h"
#include "trainer/data/dataset.h"
#include "trainer/loaded_model.h"
#include "trainer/scoring/lora_drop_probe.h"
#include "trainer/scoring/score_plan.h"

namespace graft::trainer {

using ProgressCallback = std::function<void()>;

class ScoringRunner : public ItemRunner {
 public:
  // All but `weights` must outlive the runner. The adapter's parameters stop requiring gradients.
  // `weights` is asked for the biases of linears (lora_drop; kind input when one does not load).
  // Rank-local.
  static absl::StatusOr<std::unique_ptr<ScoringRunner>> Create(const ScoreTask& task,
                                                               const Dataset& data,
                                                               LoadedModel& model,
                                                               models::WeightSource& weights);

  // Kind numeric naming sample and module when a number is not finite.
  absl::StatusOr<std::string> Run(const WorkItem& item, const ProgressCallback& progress) override;
  // Layers that samples have passed through on this stage in loo and keep_one items.
  int64_t layer_forwards() const { return layer_forwards_; }

 private:
  ScoringRunner(const ScoreTask& task, const Dataset& data, LoadedModel& model);
  absl::Status AddProbes(models::WeightSource& weights);
  std::vector<models::MicroBatch> MicroBatches(const WorkItem& item) const;
  // Whose rows pass a site: with an encoder, its own or the decoder's.
  const models::MicroBatch& BatchAt(models::SiteId site, const models::MicroBatch& batch) const;

  // loo and keep_one: scoring_ablation.cc. Values by column (score_plan.h), each of the item's
  // samples.
  using Columns = std::vector<std::vector<double>>;
  void Ablate(const WorkItem& item, const models::MicroBatch& batch, Columns* columns);
  void AblateLayer(const WorkItem& item, int layer, const models::MicroBatch& batch,
                   torch::Tensor* state, size_t column, Columns* columns);
  torch::Tensor Advance(const models::MicroBatch& batch, bool open, int from, int to,
                        torch::Tensor state);
  torch::Tensor RunLayers(const models::MicroBatch& batch, const models::SiteGates& gates,
                          int first, int end, const torch::Tensor& h);
  std::vector<double> SampleLosses(const models::MicroBatch& batch, const torch::Tensor& h);

  // taylor, lora_drop, loss: one pass of the whole item. This stage's values.
  std::vector<double> Differentiate(const std::vector<models::MicroBatch>& batches,
                                    const ProgressCallback& progress);
  std::vector<double> Evaluate(const WorkItem& item, const std::vector<models::MicroBatch>& batches,
                               const ProgressCallback& progress);

  // To and from the neighbouring stages, in order.
  void SendUp(const torch::Tensor& tensor);
  torch::Tensor ReceiveFromBelow(const torch::Tensor& buffer);
  // The values of all stages up to this one.
  std::vector<double> JoinStages(std::vector<double> mine);
  absl::Status CheckFinite(const WorkItem& item, const std::vector<double>& values) const;

  const ScoreTask& task_;
  const Dataset& data_;
  LoadedModel& model_;
  models::Backbone& backbone_;
  std::vector<models::SiteSpec> own_modules_;  // of this stage
  comm::StageLink link_;
  uint64_t sent_ = 0, received_ = 0;
  int64_t layer_forwards_ = 0;
  std::vector<std::shared_ptr<LoraDropProbe>> probes_;  // of own_modules_; lora_drop only
};

}  // namespace graft::trainer
