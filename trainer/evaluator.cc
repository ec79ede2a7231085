#include "trainer/evaluator.h"

#include "comm/reducer.h"
#include "trainer/data/batch_plan.h"
#include "trainer/data/collate.h"
#include "trainer/task_metrics.h"

namespace graft::trainer {
namespace {

// Micro-batches that lie in memory and in the pipeline at a time: enough to fill it, few enough to
// hold a long data set.
constexpr size_t kMicroBatchesPerRun = 64;

}  // namespace

double EvalResult::Value(const std::string& name) const {
  for (const auto& [metric, value] : metrics) {
    if (metric == name) return value;
  }
  return loss;
}

EvalResult Evaluate(LoadedModel& model, const Dataset& data, int64_t num_samples,
                    int64_t micro_batch) {
  std::vector<std::vector<int64_t>> share =
      EvaluationMicroBatches(num_samples, micro_batch, model.grid().data, model.data_rank());
  const size_t counted = share.size();
  if (model.shards() != nullptr) {
    // The replicas need each other's weights: those with fewer micro-batches run a sample that
    // counts for nothing. The first rank has most.
    share.resize(EvaluationMicroBatches(num_samples, micro_batch, model.grid().data, 0).size(),
                 {0});
  }
  comm::ControlVector mine;
  TaskMetrics metrics(model.task(), model.outputs());
  for (size_t begin = 0; begin < share.size(); begin += kMicroBatchesPerRun) {
    std::vector<models::MicroBatch> batches;
    for (size_t i = begin; i < std::min(share.size(), begin + kMicroBatchesPerRun); ++i) {
      batches.push_back(Collate(data, share[i], /*step=*/0, static_cast<int64_t>(i),
                                model.method().virtual_rows(),
                                model.config().decoder_start_token_id));
      if (i >= counted) continue;
      mine.samples += static_cast<double>(share[i].size());
      mine.tokens += static_cast<double>(CountTokens(data, share[i]));
      mine.trained_tokens += static_cast<double>(CountTrainedTokens(data, share[i]));
    }
    model.world().heartbeat().Renew();
    const sharding::StepResult run = model.executor().Evaluate(batches);
    double loss_sum = 0;
    for (size_t i = 0; i < run.losses.size() && begin + i < counted; ++i) {
      loss_sum += run.losses[i];
      if (run.outputs[i].defined()) metrics.Add(run.outputs[i], batches[i]);
    }
    mine.loss_sum += loss_sum;
  }
  if (!model.is_last_stage()) mine = comm::ControlVector();
  const comm::ControlVector total = comm::ReduceControl(model.world().all(), mine);
  EvalResult result;
  result.samples = static_cast<int64_t>(total.samples);
  result.tokens = static_cast<int64_t>(total.tokens);
  result.trained_tokens = static_cast<int64_t>(total.trained_tokens);
  result.loss = total.trained_tokens > 0 ? total.loss_sum / total.trained_tokens : 0.0;
  metrics.Reduce(model.world().all());
  result.metrics = metrics.Values(result.loss);
  return result;
}

}  // namespace graft::trainer
