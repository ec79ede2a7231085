// The metrics of a task over a whole evaluation: counts that add up over micro-batches and ranks.
// Used by the evaluator. It computes no loss.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "comm/communicator.h"
#include "models/micro_batch.h"

namespace graft::trainer {

// Names that eval.metric may have for a task, and whether more of it is better.
struct MetricName {
  std::string name;
  bool higher_is_better = false;
};
std::vector<MetricName> MetricsOfTask(const std::string& task);

class TaskMetrics {
 public:
  // `outputs`: numbers that the task head gives for a sample; 0 = the task has none (causal_lm).
  TaskMetrics(const std::string& task, int64_t outputs);

  // As StepResult::outputs has them for `batch`: (S, C), or with causal_lm (targets) bool.
  void Add(const torch::Tensor& outputs, const models::MicroBatch& batch);
  // Sums over all ranks, which must call. Throws kind peer.
  void Reduce(comm::Communicator& world);
  // classification: accuracy; f1 (of class 1 with two classes, else the mean over classes); mcc
  // (Matthews correlation). regression: mse, pearson. causal_lm: perplexity; token_accuracy, the
  // share of trained tokens that the model would say after the true text before them; exact_match,
  // the share of samples (of those that train a token) in which that holds for every one of them.
  // A quotient with 0 below is 0. `loss`: of the whole evaluation.
  std::vector<std::pair<std::string, double>> Values(double loss) const;

 private:
  void AddTargets(const torch::Tensor& right, const models::MicroBatch& batch);
  std::vector<std::pair<std::string, double>> Classification() const;
  std::vector<std::pair<std::string, double>> Regression(double loss) const;

  std::string task_;
  int64_t outputs_;
  // classification: C x C samples by (label, prediction). regression: number, sums of x, y, x^2,
  // y^2, x y with x the prediction. causal_lm: trained tokens, right ones; samples that train a
  // token, those with no wrong one.
  std::vector<double> sums_;
};

}  // namespace graft::trainer
