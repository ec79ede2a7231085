#include "trainer/task_metrics.h"

#include <cmath>

#include <ATen/ATen.h>

namespace graft::trainer {
namespace {

double Ratio(double above, double below) { return below > 0 ? above / below : 0.0; }

// Samples by (label, prediction) as row sums, column sums and diagonal.
struct Margins {
  std::vector<double> labels, predictions, right;
  double total = 0, all_right = 0;
};

Margins MarginsOf(const std::vector<double>& counts, size_t classes) {
  Margins margins{std::vector<double>(classes), std::vector<double>(classes),
                  std::vector<double>(classes)};
  for (size_t label = 0; label < classes; ++label) {
    for (size_t prediction = 0; prediction < classes; ++prediction) {
      const double count = counts[label * classes + prediction];
      margins.labels[label] += count;
      margins.predictions[prediction] += count;
      margins.total += count;
    }
    margins.right[label] = counts[label * classes + label];
    margins.all_right += margins.right[label];
  }
  return margins;
}

double F1OfClass(const Margins& m, size_t c) {
  return Ratio(2 * m.right[c], m.labels[c] + m.predictions[c]);
}

// Matthews correlation for any number of classes (Gorodkin 2004).
double Matthews(const Margins& m) {
  double crossed = 0, labels = 0, predictions = 0;
  for (size_t c = 0; c < m.labels.size(); ++c) {
    crossed += m.labels[c] * m.predictions[c];
    labels += m.labels[c] * m.labels[c];
    predictions += m.predictions[c] * m.predictions[c];
  }
  const double square = m.total * m.total;
  return Ratio(m.all_right * m.total - crossed,
               std::sqrt((square - predictions) * (square - labels)));
}

}  // namespace

std::vector<MetricName> MetricsOfTask(const std::string& task) {
  if (task == "classification") {
    return {{"loss", false}, {"accuracy", true}, {"f1", true}, {"mcc", true}};
  }
  if (task == "regression") return {{"loss", false}, {"mse", false}, {"pearson", true}};
  return {{"loss", false}, {"perplexity", false}, {"token_accuracy", true}, {"exact_match", true}};
}

TaskMetrics::TaskMetrics(const std::string& task, int64_t outputs)
    : task_(task), outputs_(outputs) {
  const size_t numbers = task == "classification" ? static_cast<size_t>(outputs * outputs)
                         : task == "regression"   ? 6
                                                  : 4;
  sums_.resize(numbers);
}

void TaskMetrics::Add(const torch::Tensor& outputs, const models::MicroBatch& batch) {
  if (task_ == "classification") {
    const torch::Tensor predictions = outputs.argmax(1).contiguous();
    for (size_t i = 0; i < batch.labels.size(); ++i) {
      const int64_t prediction = predictions.const_data_ptr<int64_t>()[i];
      sums_[static_cast<size_t>(batch.labels[i] * outputs_ + prediction)] += 1;
    }
    return;
  }
  if (task_ != "regression") {
    AddTargets(outputs, batch);
    return;
  }
  const torch::Tensor predictions = outputs.reshape({-1}).to(at::kDouble);
  for (size_t i = 0; i < batch.values.size(); ++i) {
    const double x = predictions.const_data_ptr<double>()[i], y = batch.values[i];
    const double terms[] = {1, x, y, x * x, y * y, x * y};
    for (size_t k = 0; k < sums_.size(); ++k) sums_[k] += terms[k];
  }
}

void TaskMetrics::AddTargets(const torch::Tensor& right, const models::MicroBatch& batch) {
  const bool* values = right.const_data_ptr<bool>();
  size_t target = 0;  // targets stand in the order of their samples
  for (const models::Segment& segment : batch.segments) {
    const size_t first = target;
    double correct = 0;
    for (; target < batch.target_rows.size() &&
           batch.target_rows[target] < segment.begin + segment.length;
         ++target) {
      correct += values[target] ? 1 : 0;
    }
    if (target == first) continue;
    const auto trained = static_cast<double>(target - first);
    const double terms[] = {trained, correct, 1, correct == trained ? 1.0 : 0.0};
    for (size_t k = 0; k < sums_.size(); ++k) sums_[k] += terms[k];
  }
}

void TaskMetrics::Reduce(comm::Communicator& world) {
  world.AllReduce({.data = sums_.data(), .count = sums_.size(), .type = comm::DType::kFloat64},
                  comm::ReduceOp::kSum);
}

std::vector<std::pair<std::string, double>> TaskMetrics::Values(double loss) const {
  if (task_ == "classification") return Classification();
  if (task_ == "regression") return Regression(loss);
  return {{"perplexity", std::exp(loss)},
          {"token_accuracy", Ratio(sums_[1], sums_[0])},
          {"exact_match", Ratio(sums_[3], sums_[2])}};
}

std::vector<std::pair<std::string, double>> TaskMetrics::Classification() const {
  const auto classes = static_cast<size_t>(outputs_);
  const Margins margins = MarginsOf(sums_, classes);
  double f1 = classes == 2 ? F1OfClass(margins, 1) : 0.0;
  if (classes != 2) {
    for (size_t c = 0; c < classes; ++c) f1 += F1OfClass(margins, c) / static_cast<double>(classes);
  }
  return {{"accuracy", Ratio(margins.all_right, margins.total)},
          {"f1", f1},
          {"mcc", Matthews(margins)}};
}

std::vector<std::pair<std::string, double>> TaskMetrics::Regression(double loss) const {
  const double n = sums_[0], x = sums_[1], y = sums_[2];
  const double covariance = n * sums_[5] - x * y;
  const double spread = std::sqrt(n * sums_[3] - x * x) * std::sqrt(n * sums_[4] - y * y);
  return {{"mse", loss}, {"pearson", Ratio(covariance, spread)}};
}

}  // namespace graft::trainer
