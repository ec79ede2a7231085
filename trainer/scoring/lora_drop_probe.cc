#include "trainer/scoring/lora_drop_probe.h"

#include <utility>

#include <ATen/ATen.h>

namespace graft::trainer {
namespace {

torch::Tensor EditGram(const adapters::LowRankEdit& edit) {
  const torch::Tensor b = edit.b.detach().to(at::kDouble);
  return at::mm(b.t(), b) * (edit.scale * edit.scale);
}

}  // namespace

LoraDropProbe::LoraDropProbe(const adapters::LowRankEdit& edit, torch::Tensor bias)
    : a_(edit.a.detach()), gram_(EditGram(edit)), bias_(std::move(bias)) {}

void LoraDropProbe::Begin(int64_t num_samples, int64_t micro_batch) {
  micro_batch_ = micro_batch;
  edits_.assign(static_cast<size_t>(num_samples), 0.0);
  outputs_.assign(static_cast<size_t>(num_samples), 0.0);
}

torch::Tensor LoraDropProbe::EditOutput(const models::SiteInput& x, torch::Tensor y,
                                        models::SiteContext& context) {
  at::NoGradGuard no_grad;
  auto sample = static_cast<size_t>(context.batch->index * micro_batch_);
  for (const models::Segment& segment : context.batch->segments) {
    const torch::Tensor rows = x.value.narrow(0, segment.begin, segment.length).to(at::kFloat);
    const torch::Tensor u = at::mm(a_, rows.t()).to(at::kDouble);  // (r, tokens)
    edits_[sample] = (gram_ * at::mm(u, u.t())).sum().item<double>();
    torch::Tensor product = y.narrow(0, segment.begin, segment.length).to(at::kDouble);
    if (bias_.defined()) product = product - bias_;
    outputs_[sample] = product.square().sum().item<double>();
    ++sample;
  }
  return y;
}

}  // namespace graft::trainer
