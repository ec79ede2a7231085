#include "adapters/tanh_head.h"

#include <cmath>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"

namespace graft::adapters {
namespace {

constexpr double kWeightDeviation = 0.02;

}  // namespace

std::vector<ParameterSpec> TanhHeadParameters(const TanhHeadSpec& spec) {
  return {{spec.prefix + ".0.weight", {spec.hidden, spec.in}, spec.layer},
          {spec.prefix + ".0.bias", {spec.hidden}, spec.layer},
          {spec.prefix + ".2.weight", {spec.out, spec.hidden}, spec.layer},
          {spec.prefix + ".2.bias", {spec.out}, spec.layer}};
}

TanhHead::TanhHead(const TanhHeadSpec& spec, const AttachOptions& options, double dropout)
    : site_{spec.layer, static_cast<models::Role>(spec.site)},
      seed_(options.seed),
      dropout_(dropout),
      compute_dtype_(options.compute_dtype) {
  const GeneratorInit init(options, spec.layer, spec.site);
  const int first = spec.first_tensor;
  const double bound = 1.0 / std::sqrt(static_cast<double>(spec.in));
  const torch::Tensor values[] = {init.Normal(first, {spec.hidden, spec.in}, kWeightDeviation),
                                  init.Uniform(first + 1, {spec.hidden}, bound),
                                  init.Normal(first + 2, {spec.out, spec.hidden}, kWeightDeviation),
                                  init.Constant({spec.out}, 0.0)};
  const std::vector<ParameterSpec> specs = TanhHeadParameters(spec);
  for (size_t i = 0; i < specs.size(); ++i) {
    parameters_.push_back({specs[i].name, values[i], spec.layer});
  }
}

torch::Tensor TanhHead::Run(const torch::Tensor& e, const std::vector<models::Segment>& segments,
                            const models::SiteContext& context) const {
  const torch::Tensor dropped = GeneratorDropout(e, segments, context.batch->step, site_, seed_,
                                                 context.training ? dropout_ : 0.0);
  const torch::Tensor hidden = at::tanh(
      GeneratorLinear(dropped, parameters_[0].value, parameters_[1].value, compute_dtype_));
  return GeneratorLinear(hidden, parameters_[2].value, parameters_[3].value, compute_dtype_);
}

}  // namespace graft::adapters
