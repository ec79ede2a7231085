#include "trainer/token_choice.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/philox.h"
#include "base/status.h"

namespace graft::trainer {
namespace {

constexpr uint64_t kHeadSite = 34;

}  // namespace

int64_t ChooseToken(const torch::Tensor& logits, const SamplingOptions& options, int64_t sample_id,
                    int64_t position) {
  if (options.temperature <= 0) return at::argmax(logits).item<int64_t>();
  const uint64_t key =
      PhiloxKey(options.seed, RandomPurpose::kSampling, /*step=*/0, /*layer=*/0, kHeadSite);
  const auto id = static_cast<uint64_t>(sample_id);
  const PhiloxBlock draw = Philox(key, {static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32),
                                        static_cast<uint32_t>(position), 0});
  auto [probabilities, order] = at::softmax(logits.to(at::kDouble) / options.temperature, 0)
                                    .sort(/*stable=*/true, 0, /*descending=*/true);
  const torch::Tensor below = at::cumsum(probabilities, 0) - probabilities;
  const int64_t kept = std::max<int64_t>(1, below.lt(options.top_p).sum().item<int64_t>());
  const torch::Tensor cumulative = at::cumsum(probabilities.narrow(0, 0, kept), 0);
  const double target = PhiloxUniform(draw[0]) * cumulative[kept - 1].item<double>();
  const int64_t place = std::min(kept - 1, cumulative.le(target).sum().item<int64_t>());
  return order[place].item<int64_t>();
}

std::vector<BeamCandidate> BestContinuations(const torch::Tensor& logits,
                                             const std::vector<Beam>& beams, int64_t count) {
  std::vector<float> so_far;
  for (const Beam& beam : beams) so_far.push_back(beam.score);
  const torch::Tensor totals =
      at::log_softmax(logits, 1) + torch::tensor(so_far, torch::kFloat32).unsqueeze(1);
  const auto [values, indices] = totals.flatten().topk(count);
  std::vector<BeamCandidate> best;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t number = indices.const_data_ptr<int64_t>()[i];
    best.push_back(
        {number / logits.size(1), number % logits.size(1), values.const_data_ptr<float>()[i]});
  }
  return best;
}

absl::Status CheckFinite(const torch::Tensor& logits, int64_t sample_id) {
  return std::isfinite(logits.max().item<float>()) ? absl::OkStatus() : NotFinite(sample_id);
}

absl::Status NotFinite(int64_t sample_id) {
  return NumericError(
      absl::StrCat("sample ", sample_id, ": the logits of the next token are not finite"));
}

torch::Tensor GreedyTokens(const torch::Tensor& logits) {
  const auto [largest, tokens] = at::max(logits, 1);
  return tokens.masked_fill(largest.isfinite().logical_not_(), -1);
}

std::vector<int64_t> HostTokens(const torch::Tensor& tokens) {
  const torch::Tensor host = tokens.cpu().contiguous();
  return {host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel()};
}

}  // namespace graft::trainer
