// One rank's life in a training run: Build opens everything in small steps, Run takes the steps. To
// see what a step does read TrainStep in trainer.cc; it is one page. Used by the `train` command
// and by programs that embed graft.
//
// Rank 0 also keeps the run's folder (run.output): lock, recipe.yaml, metrics.jsonl, adapter/,
// adapter-best/, checkpoints/. With eval.every above 0 the adapter with the best evaluation is kept
// in adapter-best/ and becomes adapter/ at the end; else adapter/ is the last one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/file.h"
#include "comm/reducer.h"
#include "comm/world.h"
#include "sharding/checkpoint.h"
#include "sharding/gradient_reduction.h"
#include "trainer/config.h"
#include "trainer/data/batch_ahead.h"
#include "trainer/data/batch_plan.h"
#include "trainer/data/dataset.h"
#include "trainer/evaluator.h"
#include "trainer/health.h"
#include "trainer/loaded_model.h"
#include "trainer/lr_schedule.h"
#include "trainer/metrics.h"
#include "trainer/optimizer.h"
#include "trainer/progress.h"
#include "trainer/run_estimate.h"
#include "trainer/run_state.h"
#include "trainer/sensitivity_tracker.h"
#include "trainer/step_trace.h"
#include "trainer/stopwatch.h"

namespace graft::trainer {

// What a run leaves: an adapter folder, or a model folder when the backbone itself is trained; the
// best one so far has the suffix.
inline constexpr char kAdapterFolder[] = "adapter";
inline constexpr char kModelFolder[] = "model";
inline constexpr char kBestSuffix[] = "-best";

class Trainer {
 public:
  // All ranks of `world` must call; all get the same status. `world` must outlive the trainer.
  // Kinds as of the piece that failed; io when run.output is in use, or holds a checkpoint and
  // resume is `never`, or a checkpoint of another run.
  static absl::StatusOr<std::unique_ptr<Trainer>> Build(const Recipe& recipe, comm::World& world);

  // Trains from the restored step to the last one, saves, writes the adapter. The same status on
  // every rank: kind stopped when a signal asked for it and the state is saved, numeric when more
  // than 5 steps in a row or 10 in the last 1,000 were not finite. Throws StatusError for trouble
  // inside a step.
  absl::Status Run();

  int64_t finished_steps() const { return state_.step; }
  int64_t total_steps() const { return schedule_.total_steps; }
  // Where an exception happened, for the log: "data rank 0, stage 1, step 12".
  std::string Where() const;

 private:
  Trainer(const Recipe& recipe, comm::World& world)
      : recipe_(recipe), world_(world), lead_watch_(recipe.checkpoint.lead_seconds) {}
  // The steps of Build, in order. Each ends with an agreement of all ranks.
  absl::Status OpenOutput();
  absl::Status ChooseMetric();
  absl::Status OpenDataSets();
  absl::Status PlanBatches();
  absl::Status LoadModel();
  // All ranks have worked out the same operations in the same order.
  absl::Status CheckStepPlan();
  absl::Status PredictMemory(const WorkShape& shape);
  // Of a GPU: warns where the prediction does not fit; with parallel.reserve_memory takes it all.
  absl::Status ReserveMemory();
  absl::Status OpenCheckpoints();
  absl::Status Restore();
  absl::Status OpenMetrics();
  void ShowStart() const;

  // One step of the page.
  TrainRecord TrainStep();
  std::vector<models::MicroBatch> CollateStep();
  BatchAhead::Collation CollationOf(int64_t step);
  int64_t ReceivedWeightBytes() const;  // by this rank so far, with parallel.shard_weights
  comm::ControlVector MeasureStep(const sharding::StepResult& result, double reduce_seconds);

  // Between steps.
  absl::Status AfterStep(const TrainRecord& record, bool* stop);
  absl::Status CountNonFinite(const TrainRecord& record);
  absl::Status EvaluateAndKeepBest();
  // kDue: goes on beside the training (checkpoint.async), a failure is a warning, up to three in a
  // row. kMust: returns when it is committed, or fails.
  enum class SaveReason { kDue, kMust };
  absl::Status Save(SaveReason reason);
  absl::Status AdvanceSave();
  absl::Status FinishSave(SaveReason reason);
  void NoteOrderlyEnd();
  absl::Status BookSave(const sharding::SaveResult& result, SaveReason reason);
  sharding::TrainedState TrainedTensors();
  absl::StatusOr<sharding::Manifest> DescribeRun();
  void DescribePosition(sharding::Manifest* manifest);
  absl::Status Finish();
  std::string FinalFolder() const;
  std::string BestFolder() const;
  absl::Status BestBecomesFinal() const;
  // sensitivity.json, of the adapter that is written last. The ranks of data rank 0.
  absl::Status WriteSensitivity(const std::string& adapter_folder);
  // Warnings about a run that goes on; kind bug when nothing of a stage learns (trainer_health.cc).
  void WarnOfShortLead(std::optional<double> needed) const;
  void WatchGradients(double lr);
  std::vector<int64_t> PeakMemoryOfStages(const std::vector<comm::ControlVector>& by_rank) const;
  void CompareMemory(const TrainRecord& record) const;
  void WatchHealth(const TrainRecord& record, const std::vector<comm::ControlVector>& by_rank);
  // Tells the watchdog what this rank does and the flight recorder the step.
  void BeginPhase(comm::Phase phase, int64_t step);
  absl::Status Agree(const absl::Status& mine) const;
  bool IsRankZero() const { return world_.rank() == 0; }
  bool AnyRankWantsToStop() const;
  absl::Status StopWhileBuilding() const;
  void WriteTrace();
  LayoutRecord Layout() const;

  const Recipe recipe_;
  comm::World& world_;
  std::unique_ptr<FileLock> lock_;  // rank 0
  std::shared_ptr<const Dataset> train_data_, eval_data_;
  std::unique_ptr<BatchPlan> batches_;
  std::unique_ptr<LoadedModel> model_;
  BatchAhead batch_ahead_;  // reads train_data_ and model_
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<sharding::GradientReduction> reduction_;  // reads model_
  std::unique_ptr<FrozenWatch> frozen_;
  std::unique_ptr<StepTrace> trace_;  // log.trace; gone when it is written
  std::unique_ptr<SampleFlop> flop_;
  int64_t program_bytes_ = 0;                        // before anything was loaded
  std::vector<int64_t> predicted_memory_;            // bytes, by stage
  absl::Status frozen_status_;                       // of this rank's weights, from the last step
  Stopwatch frozen_clock_;                           // since the last look at them
  bool broken_ = false;                              // on any rank, as reduced
  std::unique_ptr<SensitivityTracker> sensitivity_;  // adapter.track_sensitivity
  std::unique_ptr<GradientWatch> gradient_watch_;
  LossSpikeWatch loss_watch_;
  StragglerWatch straggler_watch_;
  LeadWatch lead_watch_;
  Stopwatch step_clock_;  // since the last look at a stop request
  LrSchedule schedule_;
  RunState state_;
  int64_t saved_step_ = -1;              // of the newest checkpoint in this run's folder
  int failed_saves_ = 0;                 // in a row
  std::string resumed_from_;             // name of the checkpoint folder; empty = from the start
  bool higher_is_better_ = false;        // eval.metric
  bool stop_requested_ = false;          // by a signal on any rank, as reduced
  std::unique_ptr<MetricsLog> metrics_;  // rank 0
  std::unique_ptr<Progress> progress_;   // rank 0
  sharding::Manifest manifest_;          // what does not change from save to save
  sharding::Checkpointer::Vote save_votes_;  // of all ranks, as reduced in the last step
  std::unique_ptr<sharding::Checkpointer> checkpoints_;  // its writer uses the metrics
};

}  // namespace graft::trainer
