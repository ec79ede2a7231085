// Each kernel of our own on a GPU against the host's loops: same numbers within rounding, for both
// types, rows that the widest access divides and rows that it does not.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "adapters/dropout.h"
#include "models/device.h"
#include "models/gpu_kernels.h"
#include "models/layers/attention.h"
#include "models/layers/device_rows.h"
#include "models/layers/head_loss.h"
#include "models/layers/quantized_weight.h"
#include "models/layers/rms_norm.h"
#include "models/layers/rope.h"
#include "models/layers/swiglu.h"
#include "tests/models/relative_error.h"

namespace graft::models {
namespace {

using torch::Tensor;

const torch::Device kGpu(torch::kCUDA, 0);

struct Row {
  torch::Dtype dtype;
  int64_t width;
  double tolerance() const { return dtype == torch::kFloat32 ? 2e-6 : 4e-3; }
};

class KernelsTest : public ::testing::TestWithParam<Row> {
 protected:
  void SetUp() override { at::manual_seed(3); }
  Tensor Random(int64_t rows, int64_t width) const {
    return at::randn({rows, width}).to(GetParam().dtype);
  }
  // Value and gradients of `run` on the host and on the GPU.
  template <typename Run>
  void Compare(const std::vector<Tensor>& inputs, const Run& run) const {
    std::vector<Tensor> results[2];
    for (const bool on_gpu : {false, true}) {
      const torch::Device device = on_gpu ? kGpu : torch::Device(torch::kCPU);
      std::vector<Tensor> leaves;
      for (const Tensor& input : inputs)
        leaves.push_back(input.to(device).detach().clone().requires_grad_());
      const Tensor y = run(leaves, device);
      at::manual_seed(4);
      const Tensor seed = at::randn(y.sizes()).to(y.scalar_type()).to(device);
      results[on_gpu] = torch::autograd::grad({y}, leaves, {seed});
      results[on_gpu].push_back(y.detach());
    }
    for (size_t i = 0; i < results[0].size(); ++i)
      EXPECT_LT(RelativeError(results[1][i], results[0][i]), GetParam().tolerance()) << i;
  }
};

TEST_P(KernelsTest, TheyRunHere) {
  GpuKernels::Variant variant;
  const Tensor x = Random(4, GetParam().width).to(kGpu);
  ASSERT_TRUE(device::RowKernels().Fits({x}, x.size(1), &variant));
  ASSERT_TRUE(adapters::DropoutKernel().Fits({x}, 1, &variant));
  ASSERT_TRUE(QuantizedKernels().Fits({x}, x.size(1), &variant));
}

TEST_P(KernelsTest, RmsNorm) {
  const Tensor weight = at::rand({GetParam().width}) + 0.5;
  Compare({Random(37, GetParam().width)}, [&](const auto& x, torch::Device device) {
    return models::RmsNorm(x[0], weight.to(device), 1e-5).value;
  });
}

TEST_P(KernelsTest, RebuiltNormIsTheSameBits) {
  const Tensor x = Random(9, GetParam().width).to(kGpu).requires_grad_();
  const SiteInput y = models::RmsNorm(x, at::rand({GetParam().width}).to(kGpu), 1e-5);
  EXPECT_TRUE(at::equal(y.rebuilder->Get(), y.value.detach()));
}

TEST_P(KernelsTest, SwiGlu) {
  Compare({Random(33, GetParam().width), Random(33, GetParam().width)},
          [](const auto& x, torch::Device) { return models::SwiGlu(x[0], x[1]).value; });
}

TEST_P(KernelsTest, Rope) {
  ModelConfig config;
  config.head_dim = 2 * GetParam().width;
  config.max_positions = 4096;
  MicroBatch batch;
  batch.segments = {{0, 0, 30, 0}, {1, 30, 7, 0}};
  for (const Segment& segment : batch.segments) {
    for (int64_t t = 0; t < segment.length; ++t) batch.positions.push_back(t);
  }
  Compare({Random(37, 3 * config.head_dim)}, [&](const auto& x, torch::Device device) {
    return models::Rope(x[0], MakeRopeAngles(config, batch, GetParam().dtype, device),
                        config.head_dim);
  });
}

TEST_P(KernelsTest, DropoutDrawsTheHostsMask) {
  MicroBatch batch;
  batch.step = 5;
  batch.segments = {{77, 0, 11, 0}, {int64_t{1} << 40, 11, 26, 0}};
  const adapters::DropoutMask mask(9, RandomPurpose::kAdapterDropout, {3, Role::kAttnQ}, 0.3,
                                   batch);
  const Tensor host = Random(37, GetParam().width), gpu = host.to(kGpu).clone();
  mask.ApplyInPlace({host});
  mask.ApplyInPlace({gpu});
  EXPECT_TRUE(at::equal(gpu.to(torch::kCPU), host));
}

TEST_P(KernelsTest, TokenLosses) {
  const Tensor logits = at::randn({19, GetParam().width}) * 5;
  const Tensor ids = at::randint(GetParam().width, {19}, torch::kInt64);
  Tensor want = logits.clone(), got = logits.to(kGpu).clone();
  const Tensor want_losses = device::TokenLosses(want, ids, true);
  const Tensor got_losses = device::TokenLosses(got, ids.to(kGpu), true);
  EXPECT_LT(RelativeError(got_losses, want_losses), 2e-6);
  EXPECT_LT(RelativeError(got, want), 2e-6);
}

TEST_P(KernelsTest, QuantisedMatricesHaveTheHostsBits) {
  for (const Quantization kind : {Quantization::kInt8, Quantization::kNf4}) {
    const QuantizedShape shape{kind, 301, GetParam().width};  // nf4: the last block may be short
    double error = 0;
    const Tensor stored = QuantizeMatrix(at::randn({shape.out, shape.in}), kind, &error);
    const Tensor host = DequantizeMatrix(stored, shape, GetParam().dtype);
    const Tensor gpu = DequantizeMatrix(stored.to(kGpu), shape, GetParam().dtype);
    EXPECT_TRUE(at::equal(gpu.to(torch::kCPU), host)) << QuantizationName(kind);
    const auto on_host = MakeQuantizedWeight(stored, shape, GetParam().dtype);
    const auto on_gpu = MakeQuantizedWeight(stored.to(kGpu), shape, GetParam().dtype);
    const Tensor x = Random(19, shape.in), dy = Random(19, shape.out);
    EXPECT_LT(RelativeError(on_gpu->Multiply(x.to(kGpu), x.scalar_type()),
                            on_host->Multiply(x, x.scalar_type())),
              GetParam().tolerance());
    EXPECT_LT(RelativeError(on_gpu->MultiplyTransposed(dy.to(kGpu), x.scalar_type()),
                            on_host->MultiplyTransposed(dy, x.scalar_type())),
              GetParam().tolerance());
  }
}

INSTANTIATE_TEST_SUITE_P(All, KernelsTest,
                         ::testing::Values(Row{torch::kFloat32, 64}, Row{torch::kFloat32, 4096},
                                           Row{torch::kFloat32, 50}, Row{torch::kBFloat16, 64},
                                           Row{torch::kBFloat16, 4096}, Row{torch::kBFloat16, 50},
                                           Row{torch::kBFloat16, 14336}));

struct Heads {
  int64_t heads, kv_heads, width, window;
  bool causal;
};

class AttentionTest : public ::testing::TestWithParam<std::tuple<Heads, torch::Dtype>> {};

TEST_P(AttentionTest, EqualsTheHosts) {
  const auto& [heads, dtype] = GetParam();
  const AttentionShape shape{heads.heads, heads.kv_heads, heads.width, heads.window, heads.causal};
  const std::vector<Segment> segments = {{0, 0, 65, 0}, {1, 65, 1, 0}, {2, 66, 130, 0}};
  at::manual_seed(5);
  const auto random = [&](int64_t count) {
    return at::randn({196, count * heads.width}).to(std::get<1>(GetParam()));
  };
  const std::vector<Tensor> inputs = {random(heads.heads), random(heads.kv_heads),
                                      random(heads.kv_heads)};
  const Tensor seed = random(heads.heads);
  std::vector<Tensor> results[2];
  for (const bool on_gpu : {false, true}) {
    std::vector<Tensor> leaves;
    for (const Tensor& input : inputs)
      leaves.push_back((on_gpu ? input.to(kGpu) : input.clone()).detach().requires_grad_());
    const Tensor y = Attention(leaves[0], leaves[1], leaves[2], segments, shape);
    results[on_gpu] = torch::autograd::grad({y}, leaves, {seed.to(y.device())});
    results[on_gpu].push_back(y.detach());
  }
  const double tolerance = dtype == torch::kFloat32 ? 1e-5 : 2e-2;
  for (size_t i = 0; i < results[0].size(); ++i)
    EXPECT_LT(RelativeError(results[1][i], results[0][i]), tolerance) << i;
}

// Of samples so long that the backward pass splits them, in the same bits every time.
TEST_P(AttentionTest, RepeatsBitByBit) {
  const auto& [heads, dtype] = GetParam();
  const AttentionShape shape{heads.heads, heads.kv_heads, heads.width, heads.window, heads.causal};
  const std::vector<Segment> segments = {{0, 0, 3000, 0}, {1, 3000, 1096, 0}};
  at::manual_seed(5);
  const torch::TensorOptions options = torch::TensorOptions(dtype).device(kGpu);
  const auto random = [&](int64_t count) {
    return at::randn({4096, count * heads.width}, options).requires_grad_();
  };
  const std::vector<Tensor> leaves = {random(heads.heads), random(heads.kv_heads),
                                      random(heads.kv_heads)};
  const Tensor seed = at::randn({4096, heads.heads * heads.width}, options);
  std::vector<Tensor> first;
  for (int run = 0; run < 4; ++run) {
    const Tensor y = Attention(leaves[0], leaves[1], leaves[2], segments, shape);
    const auto gradients = torch::autograd::grad({y}, leaves, {seed});
    if (run == 0) first = gradients;
    for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(at::equal(gradients[i], first[i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, AttentionTest,
    ::testing::Combine(::testing::Values(Heads{8, 2, 64, 0, true}, Heads{4, 4, 128, 0, true},
                                         Heads{8, 2, 64, 40, true}, Heads{4, 4, 64, 0, false}),
                       ::testing::Values(torch::kFloat32, torch::kBFloat16)));

}  // namespace
}  // namespace graft::models
