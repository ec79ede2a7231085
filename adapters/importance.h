// How much each LoRA module matters (methods.md 16.1): from what was measured on single samples to
// one score per module. Pure float64 arithmetic in a fixed order, so that the same values give the
// same bits; higher = keep. Who measures: trainer/scoring. Files: importance_file.h; what is done
// with the scores: selection.h. Links without LibTorch.
//
// The scores are ours or other papers', as the table there says; none is a formula of FanLoRA's
// paper, which gives none.
//
// Legend: module = a linear's LoRA, at (layer, role); sample n with c_n trained tokens and loss
// l_n, the sum of its cross-entropies in nats; C = sum of c_n; M = all modules on, base = all off,
// M\m = all but m, M_m = only m.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "models/role.h"

namespace graft::adapters {

// The scores by their recipe names (score.method).
inline constexpr const char* kScoreMethods[] = {
    "loo",       "keep_one",           "ab",        "ab_rank",
    "taylor",    "taylor_abs",         "taylor_sq", "sensitivity",
    "lora_drop", "lora_drop_relative", "magnitude", "random"};

struct ModuleScore {
  models::SiteId site;
  int64_t in_features = 0, out_features = 0;  // of the linear
  double score = 0;
  std::optional<double> standard_error = {};  // of the score over samples
  std::vector<std::pair<std::string, double>> terms = {};

  double Term(const std::string& name) const;  // must be there
};

// Values of the samples, one after the other; sums run inside shards of `shard_samples`, then over
// the shards.
struct SampleRange {
  std::vector<int64_t> trained_tokens;  // c_n
  int64_t shard_samples = 1;
};
double OrderedSum(const std::vector<double>& values, int64_t shard_samples);
int64_t TrainedTokens(const SampleRange& samples);  // C
// sum of d_n / C.
double MeanPerToken(const std::vector<double>& values, const SampleRange& samples);
// sqrt(N / (N - 1) sum_n (d_n - D c_n)^2) / C with D = sum d_n / C; none for a single sample.
std::optional<double> StandardError(const std::vector<double>& values, const SampleRange& samples);

// By module, then sample.
using SampleValues = std::vector<std::vector<double>>;

// What ablation measures, as paired differences against the clean copy that ran beside the variant.
struct AblationValues {
  SampleValues loo = {};               // l_n(M\m) - l_n(M)
  SampleValues keep_one = {};          // l_n(base) - l_n(M_m)
  std::vector<double> all = {}, bare = {};  // l_n(M), l_n(base): the clean copies of the lowest layer
};

// Each fills score, standard_error and terms of `modules`, which say the sites. `method` picks
// among the forms that share measurements.
//
// loo, keep_one, ab, ab_rank; what a method does not need may be empty.
void ScoreAblation(const std::string& method, const AblationValues& values,
                   const SampleRange& samples, std::vector<ModuleScore>* modules);
// taylor, taylor_abs, taylor_sq of t_n = -dl_n/d(gate of m) at the open gate: first-order loo.
void ScoreTaylor(const std::string& method, const SampleValues& values, const SampleRange& samples,
                 std::vector<ModuleScore>* modules);
// lora_drop, lora_drop_relative: `edits` are sums over a sample's tokens of norm(s B A x_t)^2,
// `outputs` of norm(W x_t)^2. num_tokens = tokens of all samples.
void ScoreLoraDrop(const std::string& method, const SampleValues& edits,
                   const SampleValues& outputs, int64_t num_tokens, int64_t shard_samples,
                   std::vector<ModuleScore>* modules);
// random: a uniform draw from the seed for each (layer, role).
void ScoreRandom(uint64_t seed, std::vector<ModuleScore>* modules);

}  // namespace graft::adapters
