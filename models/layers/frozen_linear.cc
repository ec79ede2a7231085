#include "models/layers/frozen_linear.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <string_view>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cpu/Utils.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/hash.h"
#include "models/layers/float_products.h"

namespace graft::models {
namespace {

// LibTorch's own product in the weight's dtype.
class PlainWeight : public FrozenWeight {
 public:
  explicit PlainWeight(torch::Tensor weight)
      : weight_(std::move(weight)), transposed_(weight_.t()) {}
  int64_t in_features() const override { return weight_.size(1); }
  int64_t out_features() const override { return weight_.size(0); }
  int64_t bytes() const override { return static_cast<int64_t>(weight_.nbytes()); }
  torch::Tensor Multiply(const torch::Tensor& x, torch::Dtype result) const override {
    // A GPU's product adds up in float32: no need to round it in between.
    if (x.is_cuda() && result != x.scalar_type()) return at::mm(x, transposed_, result);
    return at::mm(x, transposed_).to(result);
  }
  torch::Tensor MultiplyTransposed(const torch::Tensor& dy, torch::Dtype result) const override {
    return at::mm(dy.to(weight_.scalar_type()), weight_).to(result);
  }
  torch::Tensor Rows(const torch::Tensor& indices) const override {
    return weight_.index_select(0, indices);
  }

 private:
  torch::Tensor weight_;
  torch::Tensor transposed_;
};

// oneDNN's operators on matrices in its own layout.
torch::Tensor PackMatrix(const torch::Tensor& matrix) {
  constexpr int64_t kUsualRows = 1024;  // the layout is chosen for about so many rows
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_reorder_linear_weight", "")
          .typed<torch::Tensor(const torch::Tensor&, std::optional<c10::SymInt>)>();
  return op.call(matrix, c10::SymInt(kUsualRows));
}

// x W^T.
torch::Tensor MultiplyPacked(const torch::Tensor& x, const torch::Tensor& packed) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
          .typed<torch::Tensor(const torch::Tensor&, const torch::Tensor&,
                               const std::optional<torch::Tensor>&, std::string_view,
                               c10::List<std::optional<at::Scalar>>,
                               std::optional<std::string_view>)>();
  return op.call(x, packed, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), "");
}

PackedBytes BytesOf(const void* data, std::size_t size) {
  return {.data = data, .size = size, .hash64 = Hash64(data, size)};
}

// Where the bytes of a matrix in oneDNN's layout lie, and what they are now.
PackedBytes BytesOfPacked(const torch::Tensor& packed) {
  static const auto data = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("mkldnn::data_ptr", "")
                               .typed<int64_t(const torch::Tensor&)>();
  static const auto size = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("mkldnn::_nbytes", "")
                               .typed<int64_t(const torch::Tensor&)>();
  return BytesOf(reinterpret_cast<const void*>(data.call(packed)),
                 static_cast<std::size_t>(size.call(packed)));
}

// float32 in host memory, read as it is stored (float_products.h). A transposed one (GPT-2's) is
// rearranged once.
class FloatWeight : public FrozenWeight {
 public:
  explicit FloatWeight(const torch::Tensor& weight) : weight_(weight.contiguous()) {
    if (!weight.is_contiguous()) copied_ = {BytesOf(weight_.const_data_ptr(), weight_.nbytes())};
  }
  int64_t in_features() const override { return weight_.size(1); }
  int64_t out_features() const override { return weight_.size(0); }
  int64_t bytes() const override { return static_cast<int64_t>(weight_.nbytes()); }
  torch::Tensor Multiply(const torch::Tensor& x, torch::Dtype result) const override {
    return MultiplyFloat(x.to(torch::kFloat32).contiguous(), weight_).to(result);
  }
  torch::Tensor MultiplyTransposed(const torch::Tensor& dy, torch::Dtype result) const override {
    return MultiplyFloatTransposed(dy.to(torch::kFloat32).contiguous(), weight_).to(result);
  }
  torch::Tensor Rows(const torch::Tensor& indices) const override {
    return weight_.index_select(0, indices);
  }
  std::vector<PackedBytes> Packed() const override { return copied_; }

 private:
  torch::Tensor weight_;
  std::vector<PackedBytes> copied_;
};

// bfloat16 products on weights in oneDNN's layout: a few per cent faster than plain ones, for any
// number of rows.
class PackedWeight : public FrozenWeight {
 public:
  PackedWeight(torch::Tensor weight, FrozenUse use)
      : use_(use),
        in_features_(weight.size(1)),
        out_features_(weight.size(0)),
        bytes_(static_cast<int64_t>(weight.nbytes())),
        dtype_(weight.scalar_type()),
        plain_(std::move(weight)) {}
  int64_t in_features() const override { return in_features_; }
  int64_t out_features() const override { return out_features_; }
  int64_t bytes() const override { return bytes_; }

  torch::Tensor Multiply(const torch::Tensor& x, torch::Dtype result) const override {
    return Product(x, Pack(&forward_, backward_, false), result);
  }
  torch::Tensor MultiplyTransposed(const torch::Tensor& dy, torch::Dtype result) const override {
    return Product(dy, Pack(&backward_, forward_, true), result);
  }
  torch::Tensor Rows(const torch::Tensor& indices) const override {
    return plain_.index_select(0, indices);
  }
  void Prepare(bool transposed) const override {
    Pack(&forward_, backward_, false);
    if (transposed) Pack(&backward_, forward_, true);
  }
  std::vector<PackedBytes> Packed() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return packed_;
  }

 private:
  torch::Tensor Product(const torch::Tensor& x, const torch::Tensor& packed,
                        torch::Dtype result) const {
    return MultiplyPacked(x.to(dtype_).contiguous(), packed).to(result);
  }

  const torch::Tensor& Pack(torch::Tensor* form, const torch::Tensor& other,
                            bool transposed) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!form->defined()) {
      *form = PackMatrix(transposed ? plain_.t().contiguous() : plain_.contiguous());
      packed_.push_back(BytesOfPacked(*form));
      if (use_ == FrozenUse::kProducts && other.defined()) plain_.reset();
    }
    return *form;
  }

  const FrozenUse use_;
  const int64_t in_features_, out_features_, bytes_;
  const torch::Dtype dtype_;
  mutable std::mutex mutex_;
  mutable torch::Tensor plain_;  // gone when both directions are packed and no rows are asked for
  mutable torch::Tensor forward_, backward_;  // W and W^T, packed on first use
  mutable std::vector<PackedBytes> packed_;   // of both
};

// bfloat16 storage, float32 product: W is converted a slab of rows at a time, so the scratch stays
// small.
class UpcastWeight : public FrozenWeight {
 public:
  explicit UpcastWeight(torch::Tensor weight) : weight_(std::move(weight)) {}
  int64_t in_features() const override { return weight_.size(1); }
  int64_t out_features() const override { return weight_.size(0); }
  int64_t bytes() const override { return static_cast<int64_t>(weight_.nbytes()); }

  torch::Tensor Multiply(const torch::Tensor& x, torch::Dtype result) const override {
    const torch::Tensor x32 = x.to(torch::kFloat32);
    torch::Tensor y = at::empty({x.size(0), out_features()}, x32.options());
    ForEachSlab([&](int64_t begin, const torch::Tensor& slab) {
      torch::Tensor part = y.narrow(1, begin, slab.size(0));
      at::mm_out(part, x32, slab.t());
    });
    return y.to(result);
  }

  torch::Tensor MultiplyTransposed(const torch::Tensor& dy, torch::Dtype result) const override {
    const torch::Tensor dy32 = dy.to(torch::kFloat32);
    torch::Tensor dx;
    ForEachSlab([&](int64_t begin, const torch::Tensor& slab) {
      const torch::Tensor part = dy32.narrow(1, begin, slab.size(0));
      if (dx.defined()) {
        dx.addmm_(part, slab);
      } else {
        dx = at::mm(part, slab);
      }
    });
    return dx.to(result);
  }

  torch::Tensor Rows(const torch::Tensor& indices) const override {
    return weight_.index_select(0, indices);
  }

 private:
  template <typename Body>
  void ForEachSlab(const Body& body) const {
    constexpr int64_t kSlabBytes = int64_t{16} << 20;
    const int64_t rows = std::max<int64_t>(1, kSlabBytes / 4 / in_features());
    for (int64_t begin = 0; begin < out_features(); begin += rows) {
      body(begin,
           weight_.narrow(0, begin, std::min(rows, out_features() - begin)).to(torch::kFloat32));
    }
  }

  torch::Tensor weight_;
};

// y = x W^T + b; saves W by reference only.
class FrozenLinearFunction : public torch::autograd::Function<FrozenLinearFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                               const FrozenLinear* layer) {
    context->saved_data["layer"] = reinterpret_cast<int64_t>(layer);
    context->set_materialize_grads(false);
    torch::Tensor y = layer->weight().Multiply(x, x.scalar_type());
    if (layer->bias().defined()) y.add_(layer->bias());
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dy) {
    if (!dy[0].defined()) return {torch::Tensor(), torch::Tensor()};
    const auto* layer = reinterpret_cast<const FrozenLinear*>(context->saved_data["layer"].toInt());
    return {layer->weight().MultiplyTransposed(dy[0], dy[0].scalar_type()), torch::Tensor(),
            torch::Tensor()};
  }
};

}  // namespace

bool HasFastBFloat16() {
  static const bool fast = [] {
    const auto capabilities = at::cpu::get_cpu_capabilities();
    const auto has = [&](const char* name) {
      const auto found = capabilities.find(name);
      return found != capabilities.end() && found->second.isBool() && found->second.toBool();
    };
    return has("avx512_bf16") || has("amx_bf16");
  }();
  return fast;
}

bool PacksWeights(torch::Dtype dtype) {
  return at::globalContext().hasMKLDNN() && dtype == torch::kBFloat16 && HasFastBFloat16();
}

std::shared_ptr<const FrozenWeight> MakeFrozenWeight(torch::Tensor weight, FrozenUse use) {
  if (weight.is_cpu() && weight.scalar_type() == torch::kFloat32) {
    return std::make_shared<FloatWeight>(weight);
  }
  if (use != FrozenUse::kPassing && weight.is_cpu() && PacksWeights(weight.scalar_type())) {
    return std::make_shared<PackedWeight>(std::move(weight), use);
  }
  if (weight.is_cpu() && weight.scalar_type() == torch::kBFloat16 && !HasFastBFloat16()) {
    return std::make_shared<UpcastWeight>(std::move(weight));
  }
  return std::make_shared<PlainWeight>(std::move(weight));
}

torch::Tensor FrozenLinear::Forward(const torch::Tensor& x) const {
  if (const torch::Tensor trained = weight_->Differentiable(); trained.defined()) {
    if (!bias_.defined()) return at::linear(x, trained);
    return at::linear(x, trained,
                      bias_.narrow(0, bias_begin_, trained.size(0)).to(trained.scalar_type()));
  }
  return FrozenLinearFunction::apply(x, this);
}

}  // namespace graft::models
