// Every layer against plain LibTorch autograd: forward values and gradients, float32; bfloat16
// within its rounding.
#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "models/device.h"
#include "models/layers/activation.h"
#include "models/layers/attention.h"
#include "models/layers/frozen_linear.h"
#include "models/layers/geglu.h"
#include "models/layers/head_loss.h"
#include "models/layers/layer_norm.h"
#include "models/layers/recompute.h"
#include "models/layers/relative_bias.h"
#include "models/layers/rms_norm.h"
#include "models/layers/rope.h"
#include "models/layers/row_kernels.h"
#include "models/layers/swiglu.h"
#include "tests/models/relative_error.h"

namespace graft::models {
namespace {

using torch::Tensor;

Tensor Random(std::vector<int64_t> shape, bool gradient = true) {
  return at::randn(shape, torch::kFloat32).requires_grad_(gradient);
}

// The same value and gradients by two routes.
void ExpectSame(const Tensor& got, const Tensor& want, const std::vector<Tensor>& inputs,
                double tolerance) {
  EXPECT_LE(RelativeError(got.detach(), want.detach()), tolerance);
  const Tensor seed = at::randn_like(want);
  const auto expected = torch::autograd::grad({want}, inputs, {seed});
  const auto actual = torch::autograd::grad({got}, inputs, {seed});
  for (size_t i = 0; i < inputs.size(); ++i)
    EXPECT_LE(RelativeError(actual[i], expected[i]), tolerance) << "input " << i;
}

Tensor PlainNorm(const Tensor& x, const Tensor& weight, double eps) {
  return x * (x.pow(2).mean(-1, true) + eps).rsqrt() * weight;
}

enum class Way { kHost, kDevice };

// By the host's own loops, and the way that other devices go.
class LayersTest : public ::testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    at::manual_seed(7);
    if (GetParam() == Way::kDevice) device_way_.emplace();
  }

 private:
  std::optional<DeviceKernelsOnHost> device_way_;
};

INSTANTIATE_TEST_SUITE_P(All, LayersTest, ::testing::Values(Way::kHost, Way::kDevice),
                         [](const auto& instance) {
                           return std::string(instance.param == Way::kHost ? "host" : "device");
                         });

TEST_P(LayersTest, ExponentialIsAccurate) {
  std::vector<float> x, y(4001);
  for (int i = 0; i <= 4000; ++i) x.push_back(-90.0f + 0.0445f * static_cast<float>(i));
  rows::Exp(x.data(), y.data(), 4001);
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = x[i] < -87.0f ? 0.0 : std::exp(static_cast<double>(x[i]));
    ASSERT_NEAR(y[i], want, 2e-7 * want) << x[i];
  }
}

TEST_P(LayersTest, BFloat16RoundsToNearestEven) {
  Tensor x = at::randn({4099}) * at::exp(20 * at::randn({4099}));
  x[0] = std::numeric_limits<float>::quiet_NaN();
  x[1] = std::numeric_limits<float>::infinity();
  x[2] = 1.00390625f;  // half way, even below
  x[3] = 1.01171875f;  // half way, even above
  const Tensor want = x.to(torch::kBFloat16);
  Tensor bits = at::empty({4099}, torch::kBFloat16), back = at::empty({4099});
  rows::Round(x.data_ptr<float>(), static_cast<uint16_t*>(bits.data_ptr()), 4099);
  EXPECT_TRUE(at::equal(bits.narrow(0, 1, 4098), want.narrow(0, 1, 4098)));
  rows::Widen(static_cast<const uint16_t*>(bits.data_ptr()), back.data_ptr<float>(), 4099);
  EXPECT_TRUE(std::isnan(back[0].item<float>()));
  EXPECT_TRUE(at::equal(back.narrow(0, 1, 4098), want.to(torch::kFloat32).narrow(0, 1, 4098)));
}

TEST_P(LayersTest, SoftmaxAndLogSumExpMatch) {
  const Tensor x = at::randn({5, 1003}) * 10;
  const Tensor want = at::logsumexp(x, {1}), soft = at::softmax(x, 1);
  Tensor work = x.clone();
  for (int64_t row = 0; row < 5; ++row) {
    float* values = work.data_ptr<float>() + row * 1003;
    EXPECT_NEAR(rows::LogSumExp(values, 1003), want[row].item<float>(), 1e-5);
    EXPECT_NEAR(rows::SoftmaxInPlace(values, 1003), want[row].item<float>(), 1e-5);
  }
  EXPECT_LE(RelativeError(work, soft), 1e-6);
}

TEST_P(LayersTest, FrozenLinear) {
  const Tensor x = Random({17, 24}), weight = Random({40, 24}, false), bias = Random({40}, false);
  const FrozenLinear linear(MakeFrozenWeight(weight), bias);
  ExpectSame(linear.Forward(x), at::linear(x, weight, bias), {x}, 1e-6);
  EXPECT_EQ(linear.parameters(), 40 * 24 + 40);
}

TEST_P(LayersTest, FrozenLinearInBFloat16RoundsOnce) {
  const Tensor x = at::randn({33, 64}).to(torch::kBFloat16).requires_grad_(true);
  const Tensor weight = at::randn({48, 64}).to(torch::kBFloat16);
  const FrozenLinear linear(MakeFrozenWeight(weight), Tensor());
  const Tensor y = linear.Forward(x);
  EXPECT_EQ(y.scalar_type(), torch::kBFloat16);
  EXPECT_LE(RelativeError(y.detach(),
                          at::mm(x.detach().to(torch::kFloat64), weight.to(torch::kFloat64).t())),
            3e-3);
  const Tensor dy = at::randn_like(y);
  const Tensor dx = torch::autograd::grad({y}, {x}, {dy})[0];
  EXPECT_LE(RelativeError(dx, at::mm(dy.to(torch::kFloat64), weight.to(torch::kFloat64))), 3e-3);
}

TEST_P(LayersTest, RmsNormAndItsRebuilder) {
  const Tensor x = Random({9, 32}), weight = Random({32}, false);
  const SiteInput normed = RmsNorm(x, weight, 1e-5);
  EXPECT_TRUE(at::equal(normed.rebuilder->Get(), normed.value.detach()));
  EXPECT_FALSE(normed.rebuilder->Get().requires_grad());
  ExpectSame(normed.value, PlainNorm(x, weight, 1e-5), {x}, 1e-6);
}

TEST_P(LayersTest, LayerNormAndItsRebuilder) {
  const Tensor x = Random({9, 32}), weight = Random({32}, false), bias = Random({32}, false);
  const SiteInput normed = LayerNorm(x, weight, bias, 1e-5);
  EXPECT_TRUE(at::equal(normed.rebuilder->Get(), normed.value.detach()));
  EXPECT_FALSE(normed.rebuilder->Get().requires_grad());
  const Tensor centred = x - x.mean(-1, true);
  const Tensor deviation = (centred.pow(2).mean(-1, true) + 1e-5).sqrt();
  ExpectSame(normed.value, centred / deviation * weight + bias, {x}, 1e-6);
}

TEST_P(LayersTest, LayerNormInBFloat16RoundsOnce) {
  const Tensor x = at::randn({5, 64}).to(torch::kBFloat16).requires_grad_(true);
  const Tensor weight = at::randn({64}), bias = at::randn({64});
  const Tensor y = LayerNorm(x, weight, bias, 1e-5).value;
  EXPECT_EQ(y.scalar_type(), torch::kBFloat16);
  const Tensor wide = x.detach().to(torch::kFloat32).requires_grad_(true);
  const Tensor want = LayerNorm(wide, weight, bias, 1e-5).value;
  EXPECT_LE(RelativeError(y.detach(), want.detach()), 3e-3);
  const Tensor dy = at::randn_like(y);
  EXPECT_LE(RelativeError(torch::autograd::grad({y}, {x}, {dy})[0],
                          torch::autograd::grad({want}, {wide}, {dy.to(torch::kFloat32)})[0]),
            3e-3);
}

TEST_P(LayersTest, ActivationsAndTheirRebuilders) {
  const Tensor x = Random({9, 33});
  const double root = std::sqrt(0.5), slope = std::sqrt(2 / M_PI);
  const std::pair<const char*, Tensor> wanted[] = {
      {"gelu", 0.5 * x * (1 + at::erf(x * root))},
      {"gelu_new", 0.5 * x * (1 + at::tanh(slope * (x + 0.044715 * x.pow(3))))},
      {"relu", x.clamp_min(0)}};
  for (const auto& [name, want] : wanted) {
    const SiteInput activated = Activation(x, ActivationOf(name));
    EXPECT_TRUE(at::equal(activated.rebuilder->Get(), activated.value.detach())) << name;
    ExpectSame(activated.value, want, {x}, 1e-6);
  }
}

TEST_P(LayersTest, AttentionInBothDirections) {
  const Tensor q = Random({100, 16}), k = Random({100, 16}), v = Random({100, 16});
  const AttentionShape shape{2, 2, 8, 0, /*causal=*/false};
  const std::vector<Segment> segments{{0, 0, 70, 0}, {1, 70, 30, 0}};
  std::vector<Tensor> samples;
  for (const Segment& s : segments) {
    const auto heads = [&](const Tensor& x) {
      return x.narrow(0, s.begin, s.length).view({s.length, 2, 8}).transpose(0, 1);
    };
    const Tensor scores = at::matmul(heads(q), heads(k).transpose(1, 2)) / std::sqrt(8.0);
    samples.push_back(
        at::matmul(at::softmax(scores, -1), heads(v)).transpose(0, 1).reshape({s.length, 16}));
  }
  ExpectSame(Attention(q, k, v, segments, shape), at::cat(samples), {q, k, v}, 2e-6);
}

// A matrix stored as (in, out) and cut over its outputs, as GPT-2's Conv1D.
TEST_P(LayersTest, FrozenLinearOfAPartOfATransposedMatrix) {
  const Tensor x = Random({17, 24}), stored = Random({24, 90}, false);
  for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
    const Tensor part = stored.to(type).narrow(1, 30, 30);
    const FrozenLinear linear(MakeFrozenWeight(part.t()), Tensor());
    const Tensor input = x.detach().to(type).requires_grad_(true);
    ExpectSame(linear.Forward(input), at::mm(input, part), {input},
               type == torch::kFloat32 ? 1e-6 : 6e-3);
  }
}

TEST_P(LayersTest, SwiGluAndItsRebuilder) {
  const Tensor gate = Random({9, 33}), up = Random({9, 33});
  const SiteInput product = SwiGlu(gate, up);
  EXPECT_TRUE(at::equal(product.rebuilder->Get(), product.value.detach()));
  ExpectSame(product.value, at::silu(gate) * up, {gate, up}, 1e-6);
}

TEST_P(LayersTest, RopeRotatesHalves) {
  ModelConfig config;
  config.head_dim = 8;
  config.max_positions = 64;
  MicroBatch batch;
  batch.segments = {{0, 0, 3, 0}, {1, 3, 2, 0}};
  batch.positions = {0, 1, 2, 0, 1};
  const RopeAngles angles = MakeRopeAngles(config, batch, torch::kFloat32);
  const Tensor x = Random({5, 16});
  const Tensor heads = x.view({5, 2, 8});
  const Tensor turned = at::cat({-heads.narrow(2, 4, 4), heads.narrow(2, 0, 4)}, 2);
  const Tensor cosine = at::cat({angles.cosine, angles.cosine}, 1).unsqueeze(1),
               sine = at::cat({angles.sine, angles.sine}, 1).unsqueeze(1);
  ExpectSame(Rope(x, angles, 8), (heads * cosine + turned * sine).view({5, 16}), {x}, 1e-6);
  EXPECT_NEAR(angles.cosine[2][0].item<float>(), std::cos(2.0),
              1e-6);                                           // first frequency is 1, position 2
  EXPECT_TRUE(at::equal(angles.cosine[0], angles.cosine[3]));  // positions restart
}

// Dense reference: one mask for the whole micro-batch.
Tensor PlainAttention(const Tensor& q, const Tensor& k, const Tensor& v,
                      const std::vector<Segment>& segments, const AttentionShape& s) {
  const int64_t n = q.size(0), group = s.num_heads / s.num_kv_heads;
  Tensor seen = at::zeros({n, n}, torch::kBool);
  for (const Segment& segment : segments) {
    for (int64_t i = 0; i < segment.length; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        if (s.sliding_window == 0 || i - j < s.sliding_window)
          seen[segment.begin + i][segment.begin + j] = true;
      }
    }
  }
  const Tensor keys = k.view({n, s.num_kv_heads, s.head_dim}).repeat_interleave(group, 1),
               values = v.view({n, s.num_kv_heads, s.head_dim}).repeat_interleave(group, 1);
  const Tensor scores = at::einsum("ihd,jhd->hij", {q.view({n, s.num_heads, s.head_dim}), keys}) /
                        std::sqrt(static_cast<double>(s.head_dim));
  const Tensor weights = at::softmax(scores.masked_fill(seen.logical_not(), -1e30), -1);
  return at::einsum("hij,jhd->ihd", {weights, values}).reshape({n, s.num_heads * s.head_dim});
}

TEST_P(LayersTest, AttentionStaysInsideSegments) {
  for (const int64_t window : {0, 3}) {
    const AttentionShape shape{4, 2, 8, window};
    const std::vector<Segment> segments = {
        {0, 0, 5, 0}, {1, 5, 5, 0}, {2, 10, 1, 0}, {3, 11, 7, 0}};
    const Tensor q = Random({18, 32}), k = Random({18, 16}), v = Random({18, 16});
    ExpectSame(Attention(q, k, v, segments, shape), PlainAttention(q, k, v, segments, shape),
               {q, k, v}, 2e-6);
  }
}

TEST_P(LayersTest, AttentionWithARelativeBiasAndAnotherScale) {
  // Longer than a block of the kernel and than the reach of the bias.
  const int64_t heads = 2, d = 8, n = 70, reach = 5;
  auto bias = std::make_shared<RelativeBias>();
  bias->reach = reach;
  const Tensor values = at::randn({heads, 2 * reach + 1});
  bias->values.assign(values.const_data_ptr<float>(),
                      values.const_data_ptr<float>() + values.numel());
  const Tensor q = Random({n, heads * d}), k = Random({n, heads * d}), v = Random({n, heads * d});
  const Tensor distance = (at::arange(n).unsqueeze(0) - at::arange(n).unsqueeze(1));
  for (const bool causal : {false, true}) {
    const AttentionShape shape{heads, heads, d, 0, causal, 1.0f, bias};
    Tensor scores =
        at::einsum("ihd,jhd->hij", {q.view({n, heads, d}), k.view({n, heads, d})}) +
        values.index_select(1, distance.clamp(-reach, reach).flatten() + reach).view({heads, n, n});
    if (causal) scores = scores.masked_fill(distance.gt(0), -1e30);
    const Tensor want = at::einsum("hij,jhd->ihd", {at::softmax(scores, -1), v.view({n, heads, d})})
                            .reshape({n, heads * d});
    ExpectSame(Attention(q, k, v, {{0, 0, n, 0}}, shape), want, {q, k, v}, 5e-6);
  }
}

TEST_P(LayersTest, CrossAttentionReadsTheKeysOfItsOwnSample) {
  const int64_t heads = 2, d = 8, length = 3, longest = 80;
  const std::vector<Segment> queries = {{0, 0, 5, 0}, {1, 5, 66, 0}};
  const std::vector<Segment> keys = {{0, 0, longest, 0}, {1, longest, length, 0}};
  const Tensor q = Random({71, heads * d}), k = Random({longest + length, heads * d}),
               v = Random({longest + length, heads * d});
  const AttentionShape shape{heads, heads, d, 0, /*causal=*/false};
  std::vector<Tensor> samples;
  for (size_t s = 0; s < queries.size(); ++s) {
    const auto rows = [&](const Tensor& x, const Segment& segment) {
      return x.narrow(0, segment.begin, segment.length).view({segment.length, heads, d});
    };
    const Tensor scores =
        at::einsum("ihd,jhd->hij", {rows(q, queries[s]), rows(k, keys[s])}) / std::sqrt(8.0);
    samples.push_back(at::einsum("hij,jhd->ihd", {at::softmax(scores, -1), rows(v, keys[s])})
                          .reshape({queries[s].length, heads * d}));
  }
  ExpectSame(CrossAttention(q, k, v, queries, keys, shape), at::cat(samples), {q, k, v}, 5e-6);
}

TEST_P(LayersTest, RelativeBucketsAreThoseOfT5) {
  // Made with HF's _relative_position_bucket for distances -20, -8, -3, -1, 0, 1, 2, 7, 20.
  const Tensor distance = at::tensor({-20, -8, -3, -1, 0, 1, 2, 7, 20}, at::kLong);
  EXPECT_TRUE(at::equal(RelativeBuckets(distance, true, 8, 20),
                        at::tensor({3, 3, 2, 1, 0, 5, 6, 7, 7}, at::kLong)));
  EXPECT_TRUE(at::equal(RelativeBuckets(distance, false, 8, 20),
                        at::tensor({7, 5, 3, 1, 0, 0, 0, 0, 0}, at::kLong)));
}

TEST_P(LayersTest, GeGluHasTheGradientsOfItsFormula) {
  const Tensor gate = Random({4, 6}), up = Random({4, 6});
  ExpectSame(GeGlu(gate, up).value, at::gelu(gate, "tanh") * up, {gate, up}, 1e-6);
  const SiteInput y = GeGlu(gate, up);
  EXPECT_TRUE(at::equal(y.rebuilder->Get(), y.value.detach()));
}

TEST_P(LayersTest, CachedAttentionEqualsFullAttention) {
  for (const int64_t window : {0, 3}) {
    const AttentionShape shape{4, 2, 8, window};
    const Tensor q = Random({9, 32}, false), k = Random({9, 16}, false), v = Random({9, 16}, false);
    const Tensor want = Attention(q, k, v, {{42, 0, 9, 0}}, shape);
    LayerKvCache cache;
    std::vector<Tensor> parts;
    int64_t begin = 0;
    for (const int64_t length : {4, 1, 3, 1}) {
      parts.push_back(cache.Attend(
          q.narrow(0, begin, length).contiguous(), k.narrow(0, begin, length).contiguous(),
          v.narrow(0, begin, length).contiguous(), {{42, 0, length, 0}}, shape));
      begin += length;
    }
    EXPECT_EQ(cache.Length(42), 9);
    EXPECT_LE(RelativeError(at::cat(parts), want), 1e-6);
  }
}

TEST_P(LayersTest, CachedAttentionAddsTheRelativeBias) {
  auto bias = std::make_shared<RelativeBias>();
  bias->reach = 3;
  const Tensor values = at::randn({4, 7});
  bias->values.assign(values.const_data_ptr<float>(), values.const_data_ptr<float>() + 28);
  const AttentionShape shape{4, 4, 8, 0, /*causal=*/true, /*scale=*/1.0f, bias};
  const Tensor q = Random({9, 32}, false), k = Random({9, 32}, false), v = Random({9, 32}, false);
  LayerKvCache cache;
  std::vector<Tensor> parts;
  int64_t begin = 0;
  for (const int64_t length : {4, 1, 3, 1}) {
    const auto rows = [&](const Tensor& x) { return x.narrow(0, begin, length).contiguous(); };
    parts.push_back(cache.Attend(rows(q), rows(k), rows(v), {{7, 0, length, 0}}, shape));
    begin += length;
  }
  EXPECT_LE(RelativeError(at::cat(parts), Attention(q, k, v, {{7, 0, 9, 0}}, shape)), 2e-6);
}

// The second step brings keys of a new sequence and none of the old one, which has forked.
TEST_P(LayersTest, CachedCrossAttentionKeepsTheEncodersRows) {
  const AttentionShape shape{4, 4, 8, 0, /*causal=*/false, /*scale=*/1.0f};
  const Tensor q = Random({4, 32}, false), k = Random({8, 32}, false), v = Random({8, 32}, false);
  LayerKvCache cache;
  const auto rows = [](const Tensor& x, int64_t begin, int64_t n) {
    return x.narrow(0, begin, n).contiguous();
  };
  const Tensor first = cache.AttendSource(rows(q, 0, 1), rows(k, 0, 5), rows(v, 0, 5),
                                          {{2, 0, 1, 0}}, {{2, 0, 5, 5}}, shape);
  cache.Fork({{2, 2}, {2, 3}});
  const Tensor second = cache.AttendSource(rows(q, 1, 3), rows(k, 5, 3), rows(v, 5, 3),
                                           {{2, 0, 1, 0}, {3, 1, 1, 0}, {9, 2, 1, 0}},
                                           {{2, 0, 0, 0}, {3, 0, 0, 0}, {9, 0, 3, 3}}, shape);
  const Tensor want =
      CrossAttention(q, k, v, {{0, 0, 3, 0}, {1, 3, 1, 0}}, {{0, 0, 5, 0}, {1, 5, 3, 0}}, shape);
  EXPECT_LE(RelativeError(at::cat({first, second}), want), 2e-6);
}

// Decoding rows of many sequences at once: the bits of each are those that it gets alone.
TEST_P(LayersTest, ADecodingRowDoesNotDependOnTheOthers) {
  const AttentionShape shape{6, 2, 16, 0};
  const std::vector<int64_t> pasts = {3, 70, 129};
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    LayerKvCache together;
    std::vector<Tensor> alone, queries, keys, values;
    const auto draw = [&](int64_t rows, int64_t width) {
      return Random({rows, width}, false).to(dtype);
    };
    for (size_t i = 0; i < pasts.size(); ++i) {
      const auto id = static_cast<int64_t>(i);
      const Segment past{id, 0, pasts[i], pasts[i]}, next{id, 0, 1, 0};
      const Tensor q = draw(pasts[i], 96), k = draw(pasts[i], 32), v = draw(pasts[i], 32);
      LayerKvCache own;
      own.Attend(q, k, v, {past}, shape);
      together.Attend(q, k, v, {past}, shape);
      queries.push_back(draw(1, 96));
      keys.push_back(draw(1, 32));
      values.push_back(draw(1, 32));
      alone.push_back(own.Attend(queries[i], keys[i], values[i], {next}, shape));
    }
    const Tensor got = together.Attend(at::cat(queries), at::cat(keys), at::cat(values),
                                       {{0, 0, 1, 0}, {1, 1, 1, 0}, {2, 2, 1, 0}}, shape);
    EXPECT_TRUE(at::equal(got, at::cat(alone))) << dtype;
  }
}

// Two children of one parent share its past and go their own ways.
TEST_P(LayersTest, ForkedCachesGoOnByThemselves) {
  const AttentionShape shape{4, 2, 8, 0};
  const Tensor q = Random({8, 32}, false), k = Random({8, 16}, false), v = Random({8, 16}, false);
  LayerKvCache cache;
  const auto attend = [&](const std::vector<int64_t>& rows, const std::vector<Segment>& segments) {
    const Tensor at_rows = torch::tensor(rows);
    return cache.Attend(q.index_select(0, at_rows), k.index_select(0, at_rows),
                        v.index_select(0, at_rows), segments, shape);
  };
  attend({0, 1, 2}, {{5, 0, 3, 3}});
  cache.Fork({{5, 5}, {5, 6}});
  attend({3, 4}, {{5, 0, 1, 0}, {6, 1, 1, 0}});
  cache.Fork({{6, 5}, {5, 6}});
  const Tensor got = attend({5, 6}, {{5, 0, 1, 0}, {6, 1, 1, 0}});
  EXPECT_EQ(cache.Length(5), 5);
  for (const auto& [row, past] : {std::pair<int64_t, int64_t>{0, 4}, {1, 3}}) {
    const Tensor rows = torch::tensor(std::vector<int64_t>{0, 1, 2, past, 5 + row});
    const Tensor want = PlainAttention(q.index_select(0, rows), k.index_select(0, rows),
                                       v.index_select(0, rows), {{0, 0, 5, 0}}, shape);
    EXPECT_LE(RelativeError(got[row], want[4]), 1e-6) << row;
  }
}

TEST_P(LayersTest, HeadLossEqualsFullLogits) {
  const Tensor h = Random({11, 16}), norm = Random({16}, false), weight = Random({50, 16}, false);
  const LossHead head{{norm, Tensor(), 1e-5}, FrozenLinear(MakeFrozenWeight(weight), Tensor())};
  const std::vector<int64_t> picked{0, 3, 4, 10}, ids{49, 0, 7, 7};
  const Tensor logits =
      at::linear(PlainNorm(h, norm, 1e-5).index_select(0, torch::tensor(picked)), weight);
  const Tensor want =
      at::nll_loss(at::log_softmax(logits, 1), torch::tensor(ids), {}, at::Reduction::Sum);
  const Tensor got = HeadLossSum(h, {torch::tensor(picked), torch::tensor(ids)}, head);
  EXPECT_NEAR(got.item<double>(), want.item<double>(), 1e-5 * want.item<double>());
  EXPECT_LE(
      RelativeError(torch::autograd::grad({got}, {h})[0], torch::autograd::grad({want}, {h})[0]),
      1e-5);
  const TargetResults targets = HeadTargets(h, {torch::tensor(picked), torch::tensor(ids)}, head);
  EXPECT_NEAR(targets.losses.sum().item<double>(), got.item<double>(), 1e-4);
  EXPECT_TRUE(at::equal(targets.right, logits.argmax(1) == torch::tensor(ids)));
  std::vector<int64_t> best;
  for (int64_t i = 0; i < 4; ++i) best.push_back(logits[i].argmax().item<int64_t>());
  EXPECT_TRUE(
      HeadTargets(h, {torch::tensor(picked), torch::tensor(best)}, head).right.all().item<bool>());
  EXPECT_LE(RelativeError(HeadLogits(h, picked, head), logits.detach()), 1e-6);
}

TEST_P(LayersTest, HeadLossWithoutTargetsIsAZeroThatStillHasAGradient) {
  const Tensor h = Random({3, 16});
  const LossHead head{{at::ones({16}), Tensor(), 1e-5},
                      FrozenLinear(MakeFrozenWeight(at::randn({50, 16})), Tensor())};
  const Tensor loss = HeadLossSum(h, {}, head);
  EXPECT_EQ(loss.item<double>(), 0.0);
  EXPECT_EQ(torch::autograd::grad({loss}, {h})[0].abs().sum().item<float>(), 0.0f);
}

TEST_P(LayersTest, RecomputedGivesTheSameGradientsAlsoForParametersInside) {
  const Tensor h = Random({4, 6}), inside = Random({6});
  const Tensor source = Random({6});
  const auto body = [&](const Tensor& x, const Tensor& other) {
    const Tensor y = at::tanh(x * inside).pow(2);
    return other.defined() ? y * other : y;
  };
  const Tensor want = body(h, Tensor());
  const Tensor seed = at::randn_like(want);
  const auto expected = torch::autograd::grad({want}, {h, inside}, {seed});
  const Tensor got = Recomputed(h, Tensor(), body);
  torch::autograd::backward({got}, {seed});
  EXPECT_TRUE(at::equal(h.grad(), expected[0]));
  EXPECT_TRUE(at::equal(inside.grad(), expected[1]));
  // A frozen input: only the parameter gets a gradient.
  const Tensor frozen = h.detach();
  torch::autograd::backward({Recomputed(frozen, Tensor(), body)}, {seed});
  EXPECT_FALSE(frozen.grad().defined());
  EXPECT_TRUE(at::allclose(inside.grad(), 2 * expected[1]));
  // What else the layer reads has its gradient too.
  const Tensor both = body(frozen, source);
  const auto of_source = torch::autograd::grad({both}, {source}, {seed});
  torch::autograd::backward({Recomputed(frozen, source, body)}, {seed});
  EXPECT_TRUE(at::equal(source.grad(), of_source[0]));
}

}  // namespace
}  // namespace graft::models
