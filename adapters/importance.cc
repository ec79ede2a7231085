#include "adapters/importance.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/philox.h"
#include "base/status.h"

namespace graft::adapters {
namespace {

std::vector<double> Map(const std::vector<double>& values, double (*f)(double)) {
  std::vector<double> result;
  for (const double value : values) result.push_back(f(value));
  return result;
}

// Place of each value among `values`, 0 for the smallest; equal values share the mean of their
// places.
std::vector<double> RanksOf(const std::vector<double>& values) {
  std::vector<double> ranks;
  for (const double value : values) {
    const auto below = std::count_if(values.begin(), values.end(),
                                     [value](double other) { return other < value; });
    const auto equal = std::count(values.begin(), values.end(), value);
    ranks.push_back(static_cast<double>(below) + static_cast<double>(equal - 1) / 2);
  }
  return ranks;
}

// ab_rank: the mean of both ranks inside the layer, scaled to 0..1.
void RankInLayers(std::vector<ModuleScore>* modules) {
  for (size_t begin = 0, end = 0; begin < modules->size(); begin = end) {
    std::vector<double> loo, keep_one;
    for (end = begin;
         end < modules->size() && (*modules)[end].site.layer == (*modules)[begin].site.layer;
         ++end) {
      loo.push_back((*modules)[end].Term("loo"));
      keep_one.push_back((*modules)[end].Term("keep_one"));
    }
    const std::vector<double> loo_ranks = RanksOf(loo), keep_ranks = RanksOf(keep_one);
    const auto most = static_cast<double>(end - begin - 1);
    for (size_t i = begin; i < end; ++i) {
      const double mean = (loo_ranks[i - begin] + keep_ranks[i - begin]) / 2;
      (*modules)[i].score = most > 0 ? mean / most : 1.0;
    }
  }
}

// One module's differences d_n.
void SetScore(const std::vector<double>& values, const SampleRange& samples, ModuleScore* module) {
  module->score = MeanPerToken(values, samples);
  module->standard_error = StandardError(values, samples);
}

}  // namespace

double ModuleScore::Term(const std::string& name) const {
  for (const auto& [term, value] : terms) {
    if (term == name) return value;
  }
  GRAFT_CHECK(false, name);
  return 0;
}

double OrderedSum(const std::vector<double>& values, int64_t shard_samples) {
  const auto step = static_cast<size_t>(shard_samples);
  double sum = 0;
  for (size_t begin = 0; begin < values.size(); begin += step) {
    double shard = 0;
    for (size_t i = begin; i < std::min(values.size(), begin + step); ++i) shard += values[i];
    sum += shard;
  }
  return sum;
}

int64_t TrainedTokens(const SampleRange& samples) {
  return std::accumulate(samples.trained_tokens.begin(), samples.trained_tokens.end(), int64_t{0});
}

double MeanPerToken(const std::vector<double>& values, const SampleRange& samples) {
  return OrderedSum(values, samples.shard_samples) / static_cast<double>(TrainedTokens(samples));
}

std::optional<double> StandardError(const std::vector<double>& values, const SampleRange& samples) {
  const auto count = static_cast<double>(values.size());
  if (values.size() < 2) return std::nullopt;
  const double mean = MeanPerToken(values, samples);
  std::vector<double> squares;
  for (size_t n = 0; n < values.size(); ++n) {
    const double rest = values[n] - mean * static_cast<double>(samples.trained_tokens[n]);
    squares.push_back(rest * rest);
  }
  return std::sqrt(count / (count - 1) * OrderedSum(squares, samples.shard_samples)) /
         static_cast<double>(TrainedTokens(samples));
}

void ScoreAblation(const std::string& method, const AblationValues& values,
                   const SampleRange& samples, std::vector<ModuleScore>* modules) {
  const bool both = method == "ab" || method == "ab_rank";
  for (size_t m = 0; m < modules->size(); ++m) {
    ModuleScore& module = (*modules)[m];
    if (!both) {
      SetScore(method == "loo" ? values.loo[m] : values.keep_one[m], samples, &module);
      continue;
    }
    const double loo = MeanPerToken(values.loo[m], samples);
    const double keep_one = MeanPerToken(values.keep_one[m], samples);
    module.terms = {{"loo", loo}, {"keep_one", keep_one}};
    if (method == "ab_rank") continue;
    // Loss(M\m) - Loss(M_m), put together so that the bracket is the same number for every module.
    module.score =
        loo + keep_one + (MeanPerToken(values.all, samples) - MeanPerToken(values.bare, samples));
    std::vector<double> differences;
    for (size_t n = 0; n < values.all.size(); ++n) {
      differences.push_back(values.loo[m][n] + values.keep_one[m][n] +
                            (values.all[n] - values.bare[n]));
    }
    module.standard_error = StandardError(differences, samples);
  }
  if (method == "ab_rank") RankInLayers(modules);
}

void ScoreTaylor(const std::string& method, const SampleValues& values, const SampleRange& samples,
                 std::vector<ModuleScore>* modules) {
  for (size_t m = 0; m < modules->size(); ++m) {
    ModuleScore& module = (*modules)[m];
    const std::vector<double> sizes = Map(values[m], [](double t) { return std::abs(t); });
    const std::vector<double> squares = Map(values[m], [](double t) { return t * t; });
    module.terms = {{"taylor", MeanPerToken(values[m], samples)},
                    {"taylor_abs", MeanPerToken(sizes, samples)},
                    {"taylor_sq", MeanPerToken(squares, samples)}};
    SetScore(method == "taylor"       ? values[m]
             : method == "taylor_abs" ? sizes
                                      : squares,
             samples, &module);
  }
}

void ScoreLoraDrop(const std::string& method, const SampleValues& edits,
                   const SampleValues& outputs, int64_t num_tokens, int64_t shard_samples,
                   std::vector<ModuleScore>* modules) {
  std::vector<double> sums;
  for (const std::vector<double>& edit : edits) sums.push_back(OrderedSum(edit, shard_samples));
  const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
  for (size_t m = 0; m < modules->size(); ++m) {
    const double absolute = sums[m] / static_cast<double>(num_tokens);
    const double output = OrderedSum(outputs[m], shard_samples);
    const double relative = output > 0 ? sums[m] / output : 0.0;
    ModuleScore& module = (*modules)[m];
    module.score = method == "lora_drop" ? absolute : relative;
    module.terms = {{"absolute", absolute},
                    {"relative", relative},
                    {"share", total > 0 ? sums[m] / total : 0.0}};
  }
}

void ScoreRandom(uint64_t seed, std::vector<ModuleScore>* modules) {
  for (ModuleScore& module : *modules) {
    const uint64_t key = PhiloxKey(seed, RandomPurpose::kRandomScore, /*step=*/0,
                                   static_cast<uint64_t>(module.site.layer),
                                   static_cast<uint64_t>(module.site.role));
    module.score = PhiloxUniform(Philox(key, {0, 0, 0, 0})[0]);
  }
}

}  // namespace graft::adapters
