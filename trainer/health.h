// Signs that a run which goes on is not well (reliability.md 4.4): a rank that computes slower than
// the others, a loss that jumps, a parameter that gets no gradient, steps too long for a stop in
// time. Pure; numbers in, findings out. Used by the trainer, which warns. Nothing here changes what
// is computed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace graft::trainer {

// Ranks whose compute time is above 1.3 times the median of all ranks in 20 steps in a row.
class StragglerWatch {
 public:
  static constexpr double kFactor = 1.3;
  static constexpr int kSteps = 20;

  // `seconds` of each rank in one step, waiting excluded, by what the plan expects of it. Returns
  // the ranks that have just become stragglers; each is named once.
  std::vector<int> Add(const std::vector<double>& seconds);

 private:
  std::vector<int> slow_steps_;  // of each rank, in a row
};

// A loss more than 6 standard deviations above the running mean.
class LossSpikeWatch {
 public:
  static constexpr double kSigmas = 6;

  // The deviation in standard deviations when `loss` is a spike. The first 20 losses never are.
  std::optional<double> Add(double loss);

 private:
  int64_t count_ = 0;
  double mean_ = 0, variance_ = 0;  // exponential, over about the last 50
};

// Parameters without any gradient in the first 3 updates with a learning rate above 0.
class GradientWatch {
 public:
  static constexpr int kUpdates = 3;

  explicit GradientWatch(std::size_t parameters) : seen_(parameters, false) {}
  bool watching() const { return updates_ < kUpdates; }
  // has_gradient[i]: parameter i has a non-zero entry in this update.
  void Add(const std::vector<bool>& has_gradient);
  // Once it watches no more: the parameters that never had one.
  std::vector<std::size_t> Dead() const;

 private:
  int updates_ = 0;
  std::vector<bool> seen_;
};

// Whether a job can stop in time: between a stop request and its end it finishes a step and saves,
// which must fit in twice.
class LeadWatch {
 public:
  static constexpr double kFactor = 2;
  static constexpr int kSteps = 20;  // before the first verdict

  // `lead` = seconds from the request to the end of the job; 0 = unknown, nothing is found.
  explicit LeadWatch(double lead) : lead_(lead) {}
  // Seconds of one step, all that lies between two steps included, and of one whole save. Return
  // the lead that the run needs when it is too short: once, from the 20th step on.
  std::optional<double> AddStep(double seconds);
  std::optional<double> AddSave(double seconds);

 private:
  std::optional<double> Judge();

  const double lead_;
  double longest_step_ = 0, longest_save_ = 0;
  int steps_ = 0;
  bool found_ = false;
};

}  // namespace graft::trainer
