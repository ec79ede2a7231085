// Products with a quantised matrix are products with W~, in both directions, however it is cut.
#include "models/layers/quantized_weight.h"

#include <gtest/gtest.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include "models/layers/gathered_weight.h"

namespace graft::models {
namespace {

using torch::Tensor;

struct Case {
  Quantization kind;
  int64_t out, in;
};

class QuantizedWeightTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    at::manual_seed(3);
    const auto& [kind, out, in] = GetParam();
    shape_ = {kind, out, in};
    weight_ = at::randn({out, in}) * 0.02;
    stored_ = QuantizeMatrix(weight_, kind, &error_);
  }
  std::shared_ptr<const FrozenWeight> Make(torch::Dtype dtype) const {
    return MakeQuantizedWeight(stored_, shape_, dtype);
  }
  static double Difference(const Tensor& a, const Tensor& b) {
    return ((a - b).norm() / b.norm()).item<double>();
  }

  QuantizedShape shape_;
  Tensor weight_, stored_;
  double error_ = 0;
};

TEST_P(QuantizedWeightTest, ProductWithTheUnitMatrixIsTheMatrixOfTheOperators) {
  const Tensor through = DequantizeMatrix(stored_, shape_, torch::kFloat32);
  const auto weight = Make(torch::kFloat32);
  EXPECT_TRUE(at::equal(weight->Multiply(at::eye(shape_.in), torch::kFloat32), through.t()));
  EXPECT_TRUE(at::equal(weight->MultiplyTransposed(at::eye(shape_.out), torch::kFloat32), through));
  EXPECT_TRUE(at::equal(weight->Rows(at::tensor({1, 0})), through.narrow(0, 0, 2).flip(0)));
  EXPECT_NEAR(Difference(through, weight_), error_, 1e-6);
  EXPECT_LT(error_, shape_.kind == Quantization::kInt8 ? 0.012 : 0.10);
}

TEST_P(QuantizedWeightTest, ValueAndGradientOfAutograd) {
  const Tensor x = at::randn({19, shape_.in}).requires_grad_(), bias = at::randn({shape_.out});
  const FrozenLinear linear(Make(torch::kFloat32), bias);
  const Tensor through = DequantizeMatrix(stored_, shape_, torch::kFloat32);
  const Tensor y = linear.Forward(x), want = at::linear(x, through, bias);
  EXPECT_LE(Difference(y.detach(), want.detach()), 1e-6);
  const Tensor dy = at::randn_like(y);
  EXPECT_LE(Difference(torch::autograd::grad({y}, {x}, {dy})[0],
                       torch::autograd::grad({want}, {x}, {dy})[0]),
            1e-6);
}

TEST_P(QuantizedWeightTest, BFloat16RoundsTheMatrixOnceAndTheResultOnce) {
  const Tensor through = DequantizeMatrix(stored_, shape_, torch::kBFloat16).to(torch::kFloat64);
  const auto weight = Make(torch::kBFloat16);
  const Tensor x = at::randn({19, shape_.in}).to(torch::kBFloat16),
               dy = at::randn({19, shape_.out}).to(torch::kBFloat16);
  const Tensor y = weight->Multiply(x, torch::kBFloat16);
  EXPECT_EQ(y.scalar_type(), torch::kBFloat16);
  EXPECT_LE(Difference(y.to(torch::kFloat64), at::mm(x.to(torch::kFloat64), through.t())), 3e-3);
  EXPECT_LE(Difference(weight->MultiplyTransposed(dy, torch::kBFloat16).to(torch::kFloat64),
                       at::mm(dy.to(torch::kFloat64), through)),
            3e-3);
}

TEST_P(QuantizedWeightTest, TheSameBitsForAnyNumberOfThreads) {
  const int threads = at::get_num_threads();
  double error = 0;
  at::set_num_threads(threads == 1 ? 2 : 1);
  const Tensor again = QuantizeMatrix(weight_, shape_.kind, &error);
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(again, stored_));
  EXPECT_EQ(error, error_);
}

TEST_P(QuantizedWeightTest, IsWatchedInItsStoredForm) {
  const std::vector<PackedBytes> packed = Make(torch::kFloat32)->Packed();
  ASSERT_EQ(packed.size(), 1u);
  EXPECT_EQ(packed[0].data, stored_.data_ptr());
  EXPECT_EQ(static_cast<int64_t>(packed[0].size), shape_.bytes());
}

// Keeps every layer whole.
class WholeLayers : public LayerMemory {
 public:
  int64_t Keep(int layer, const Tensor& bytes) override {
    EXPECT_EQ(layer, 4);
    bytes_ = bytes;
    return bytes.numel();
  }
  Tensor Use(int layer) override {
    EXPECT_EQ(layer, 4);
    return bytes_;
  }

 private:
  Tensor bytes_;
};

TEST_P(QuantizedWeightTest, BesideOthersInTheMemoryOfItsLayer) {
  const auto memory = std::make_shared<WholeLayers>();
  LayerPacker layer(memory, 4);
  const Tensor other = at::randn({7, 3});
  const auto plain = layer.AddPlain(other);
  const auto weight = layer.AddQuantized(stored_.clone(), shape_, torch::kFloat32);
  EXPECT_GE(layer.Finish(), shape_.bytes() + 7 * 3 * 4);
  const Tensor x = at::randn({5, shape_.in}), dy = at::randn({5, 7});
  const auto alone = Make(torch::kFloat32);
  EXPECT_TRUE(at::equal(weight->Multiply(x, torch::kFloat32), alone->Multiply(x, torch::kFloat32)));
  EXPECT_TRUE(at::equal(plain->MultiplyTransposed(dy, torch::kFloat32),
                        MakeFrozenWeight(other)->MultiplyTransposed(dy, torch::kFloat32)));
  EXPECT_TRUE(weight->Packed().empty());
}

INSTANTIATE_TEST_SUITE_P(
    Matrices, QuantizedWeightTest,
    testing::Values(Case{Quantization::kInt8, 48, 64}, Case{Quantization::kNf4, 48, 64},
                    Case{Quantization::kInt8, 33, 37}, Case{Quantization::kNf4, 33, 37},
                    // Several slabs in both directions.
                    Case{Quantization::kInt8, 1500, 2000}, Case{Quantization::kNf4, 1500, 2000}));

}  // namespace
}  // namespace graft::models
