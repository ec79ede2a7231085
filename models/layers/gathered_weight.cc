#include "models/layers/gathered_weight.h"

#include <utility>

#include <ATen/ATen.h>

#include "models/layers/quantized_weight.h"

namespace graft::models {
namespace {

// Where a matrix lies in its layer, and in which form.
struct MatrixPlace {
  int layer = 0;
  int64_t begin = 0;
  QuantizedShape shape;  // kind kNone: out * in numbers of `dtype`
  torch::Dtype dtype = torch::kFloat32;
};

class GatheredWeight : public FrozenWeight {
 public:
  GatheredWeight(std::shared_ptr<LayerMemory> memory, const MatrixPlace& place)
      : memory_(std::move(memory)), place_(place) {}
  int64_t in_features() const override { return place_.shape.in; }
  int64_t out_features() const override { return place_.shape.out; }
  int64_t bytes() const override { return 0; }  // the layer's memory is counted as one
  torch::Tensor Multiply(const torch::Tensor& x, torch::Dtype result) const override {
    return Here()->Multiply(x, result);
  }
  torch::Tensor MultiplyTransposed(const torch::Tensor& dy, torch::Dtype result) const override {
    return Here()->MultiplyTransposed(dy, result);
  }
  torch::Tensor Rows(const torch::Tensor& indices) const override { return Here()->Rows(indices); }

 private:
  // The matrix on its layer's bytes, for one product.
  std::shared_ptr<const FrozenWeight> Here() const {
    const torch::Tensor layer = memory_->Use(place_.layer);
    const QuantizedShape& shape = place_.shape;
    if (shape.kind != Quantization::kNone) {
      return MakeQuantizedWeight(layer.narrow(0, place_.begin, shape.bytes()), shape, place_.dtype,
                                 FrozenUse::kPassing);
    }
    const auto bytes = shape.size() * static_cast<int64_t>(c10::elementSize(place_.dtype));
    return MakeFrozenWeight(
        layer.narrow(0, place_.begin, bytes).view(place_.dtype).view({shape.out, shape.in}),
        FrozenUse::kPassing);
  }

  const std::shared_ptr<LayerMemory> memory_;
  const MatrixPlace place_;
};

}  // namespace

int64_t LayerPacker::Append(torch::Tensor bytes) {
  const int64_t begin = size_, padding = (kQuantAlign - bytes.numel() % kQuantAlign) % kQuantAlign;
  size_ += bytes.numel() + padding;
  if (padding > 0) bytes = at::cat({bytes, at::zeros({padding}, bytes.options())});
  pieces_.push_back(std::move(bytes));
  return begin;
}

std::shared_ptr<const FrozenWeight> LayerPacker::AddPlain(const torch::Tensor& weight) {
  const torch::Dtype dtype = weight.scalar_type();
  const int64_t begin = Append(weight.contiguous().flatten().view(torch::kUInt8));
  return std::make_shared<GatheredWeight>(
      memory_,
      MatrixPlace{layer_, begin, {Quantization::kNone, weight.size(0), weight.size(1)}, dtype});
}

std::shared_ptr<const FrozenWeight> LayerPacker::AddQuantized(torch::Tensor stored,
                                                              const QuantizedShape& shape,
                                                              torch::Dtype dtype) {
  const int64_t begin = Append(std::move(stored));
  return std::make_shared<GatheredWeight>(memory_, MatrixPlace{layer_, begin, shape, dtype});
}

int64_t LayerPacker::Finish() {
  const torch::Tensor layer = at::cat(pieces_);
  pieces_.clear();
  return memory_->Keep(layer_, layer);
}

}  // namespace graft::models
