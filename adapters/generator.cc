#include "adapters/generator.h"

#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "adapters/dropout.h"

namespace graft::adapters {
namespace {

// Rounding that the gradient passes through unrounded.
class RoundFunction : public torch::autograd::Function<RoundFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* /*ctx*/, const torch::Tensor& x,
                               at::ScalarType type) {
    return x.to(type).to(x.scalar_type());
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* /*ctx*/,
                                                 const torch::autograd::variable_list& g) {
    return {g[0], torch::Tensor()};
  }
};

torch::Tensor Rounded(const torch::Tensor& x, torch::Dtype type) {
  return at::promote_types(type, x.scalar_type()) == type ? x : RoundFunction::apply(x, type);
}

}  // namespace

torch::Tensor GeneratorLinear(const torch::Tensor& x, const torch::Tensor& weight,
                              const torch::Tensor& bias, torch::Dtype compute_dtype) {
  const torch::Tensor product =
      at::mm(Rounded(x, compute_dtype), Rounded(weight, compute_dtype).t());
  return bias.defined() ? product + bias : product;
}

torch::Tensor GeneratorDropout(const torch::Tensor& x, const std::vector<models::Segment>& segments,
                               int64_t step, models::SiteId site, uint64_t seed,
                               double probability) {
  if (probability <= 0) return x;
  models::MicroBatch one_row_each;
  one_row_each.step = step;
  for (const models::Segment& segment : segments) {
    one_row_each.segments.push_back(
        {.sample_id = segment.sample_id, .begin = one_row_each.num_rows(), .length = 1});
  }
  const torch::Tensor mask = at::ones(x.sizes(), x.options().requires_grad(false));
  DropoutMask(seed, RandomPurpose::kGeneratorDropout, site, probability, one_row_each)
      .ApplyInPlace({mask});
  return x * mask;
}

GeneratorInit::GeneratorInit(const AttachOptions& options, int layer, int site)
    : key_(PhiloxKey(options.seed, RandomPurpose::kInit, 0, static_cast<uint64_t>(layer),
                     static_cast<uint64_t>(site))),
      device_(options.device) {}

torch::Tensor GeneratorInit::Normal(int tensor_number, std::vector<int64_t> shape,
                                    double stddev) const {
  torch::Tensor value = at::empty(shape, at::kFloat);
  PhiloxFillNormal(key_, static_cast<uint32_t>(tensor_number), 0.0, stddev, value.data_ptr<float>(),
                   value.numel());
  return Leaf(std::move(value));
}

torch::Tensor GeneratorInit::Uniform(int tensor_number, std::vector<int64_t> shape,
                                     double bound) const {
  torch::Tensor value = at::empty(shape, at::kFloat);
  PhiloxFillUniform(key_, static_cast<uint32_t>(tensor_number), -bound, bound,
                    value.data_ptr<float>(), value.numel());
  return Leaf(std::move(value));
}

torch::Tensor GeneratorInit::Constant(std::vector<int64_t> shape, double value) const {
  return Leaf(at::full(shape, value, at::kFloat));
}

torch::Tensor GeneratorInit::Leaf(torch::Tensor value) const {
  return value.to(device_).requires_grad_();
}

}  // namespace graft::adapters
