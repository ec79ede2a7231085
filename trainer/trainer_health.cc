// The trainer's look at its own health: warnings, and one error (reliability.md 4.4).
#include <algorithm>
#include <cmath>
#include <utility>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/logging.h"
#include "base/status.h"
#include "base/text.h"
#include "comm/launcher.h"
#include "trainer/trainer.h"

namespace graft::trainer {

void Trainer::WatchGradients(double lr) {
  // With a learning rate of 0 nothing moves, so what starts behind a zero still gets no gradient.
  if (lr <= 0 || !gradient_watch_->watching()) return;
  const adapters::AdapterSet& adapters = model_->adapters();
  std::vector<torch::Tensor> any;  // read together: each look at a GPU's number waits for it
  for (size_t i = 0; i < adapters.parameters().size(); ++i) {
    const int64_t size = adapters.parameters()[i].value.numel();
    any.push_back(adapters.gradients().narrow(0, adapters.offset(i), size).any());
  }
  std::vector<bool> has_gradient;
  if (!any.empty()) {
    const torch::Tensor read = at::stack(any).to(at::kCPU);
    has_gradient.assign(read.const_data_ptr<bool>(), read.const_data_ptr<bool>() + read.numel());
  }
  gradient_watch_->Add(has_gradient);
  if (gradient_watch_->watching()) return;
  const std::vector<size_t> dead = gradient_watch_->Dead();
  if (dead.empty()) return;
  const std::string& first = adapters.parameters()[dead[0]].name;
  GRAFT_CHECK(dead.size() < adapters.parameters().size(),
              absl::StrCat("stage ", model_->stage_index(), ": none of its ", dead.size(),
                           " trained tensors got a gradient in ", GradientWatch::kUpdates,
                           " updates, first ", first));
  if (model_->data_rank() > 0) return;
  LOG(WARNING) << dead.size() << " of " << adapters.parameters().size()
               << " trained tensors of stage " << model_->stage_index()
               << " got no gradient in the first " << GradientWatch::kUpdates
               << " updates and will not learn: first " << first;
}

void Trainer::WarnOfShortLead(std::optional<double> needed) const {
  if (!needed.has_value() || !IsRankZero()) return;
  LOG(WARNING) << absl::StrFormat(
      "checkpoint.lead_seconds: found %g; a stop may take %.1f s (%g x the longest step and save): "
      "ask for the stop signal earlier (SBATCH_SIGNAL=B:USR1@%.0f sbatch ...)",
      recipe_.checkpoint.lead_seconds, *needed, LeadWatch::kFactor, std::ceil(*needed));
}

void Trainer::CompareMemory(const TrainRecord& record) const {
  constexpr int64_t kSettled = 3;  // by then every buffer has been needed once
  if (record.step != kSettled || !IsRankZero()) return;
  for (size_t stage = 0; stage < predicted_memory_.size(); ++stage) {
    const int64_t measured = record.stage_peak_memory_bytes[stage],
                  predicted = predicted_memory_[stage];
    LOG(INFO) << absl::StrFormat("memory of stage %d: %s, predicted %s (%.2f)", stage,
                                 FormatBytes(measured), FormatBytes(predicted),
                                 static_cast<double>(measured) / static_cast<double>(predicted));
  }
}

std::vector<int64_t> Trainer::PeakMemoryOfStages(
    const std::vector<comm::ControlVector>& by_rank) const {
  std::vector<int64_t> peaks(predicted_memory_.size());
  for (size_t rank = 0; rank < by_rank.size(); ++rank) {
    int64_t& peak = peaks[static_cast<size_t>(model_->grid().PipelineRank(static_cast<int>(rank)))];
    peak = std::max(peak, static_cast<int64_t>(by_rank[rank].peak_memory_bytes));
  }
  return peaks;
}

void Trainer::WatchHealth(const TrainRecord& record,
                          const std::vector<comm::ControlVector>& by_rank) {
  const double seconds = std::exchange(step_clock_, Stopwatch()).Seconds();
  WarnOfShortLead(lead_watch_.AddStep(seconds));
  CompareMemory(record);
  const auto sigmas = loss_watch_.Add(record.loss);
  if (sigmas.has_value() && IsRankZero())
    LOG(WARNING) << absl::StrFormat(
        "step %d: loss %g is %.1f standard deviations above the running mean", record.step,
        record.loss, *sigmas);
  // Stages are cut by cost as far as layers allow; what the plan knows of is nobody's fault.
  std::vector<double> compute_seconds;
  for (int rank = 0; rank < world_.size(); ++rank) {
    const double cost = model_->plan().StageCost(model_->grid().PipelineRank(rank));
    compute_seconds.push_back(by_rank[static_cast<size_t>(rank)].compute_seconds /
                              std::max(cost, 1e-9));
  }
  for (const int rank : straggler_watch_.Add(compute_seconds)) {
    if (rank != world_.rank()) continue;
    LOG(WARNING) << "this rank on " << comm::HostName() << " has computed more than "
                 << StragglerWatch::kFactor << " times as long as the median of all ranks for "
                 << StragglerWatch::kSteps
                 << " steps: a slower, hotter or shared processor? All others wait for it";
  }
}

}  // namespace graft::trainer
