// Each kernel of graft's own on a GPU beside LibTorch's operators for the same result: time, rate,
// and how far the results are apart. Without a GPU it shows that it runs: graft's forms for other
// devices on host memory, at sizes of a unit test.
// Usage: graft_kernel_bench cuda|host     Exit code 1 when results differ by more than rounding.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "absl/strings/str_cat.h"
#include "adapters/dropout.h"
#include "adapters/lora_together.h"
#include "adapters/row_tables.h"
#include "base/hash.h"
#include "base/logging.h"
#include "base/median.h"
#include "base/status.h"
#include "comm/local_communicator.h"
#include "models/device.h"
#include "models/layers/device_decode_attention.h"
#include "models/layers/head_loss.h"
#include "models/layers/quantized_weight.h"
#include "models/layers/rms_norm.h"
#include "models/layers/rope.h"
#include "models/layers/swiglu.h"
#include "models/memory_hash.h"
#include "trainer/device.h"

namespace graft::bench {
namespace {

using torch::Tensor;
// What a run gives: one tensor, or a result and its gradients.
struct Results {
  Results(Tensor one) : all{std::move(one)} {}                       // NOLINT: as if it were one
  Results(std::vector<Tensor> several) : all(std::move(several)) {}  // NOLINT
  std::vector<Tensor> all;
};
using Run = std::function<Results()>;

// A decoder layer's sizes: Llama-3-8B's with 8,192 tokens, or a few of each for the host.
struct Sizes {
  int64_t tokens = 8192, hidden = 4096, key_value = 1024, inner = 14336, vocabulary = 128256;
  int64_t head_dim = 128, targets = 2048, rank = 16, decoding = 64, cached = 2048;
};
constexpr Sizes kTiny = {.tokens = 24,
                         .hidden = 64,
                         .key_value = 32,
                         .inner = 96,
                         .vocabulary = 101,
                         .head_dim = 16,
                         .targets = 9,
                         .rank = 4,
                         .decoding = 3,
                         .cached = 40};

struct Kernel {
  std::string name;
  Run own, libtorch;
  double bytes = 0, flop = 0;  // what the result needs moved or computed; one of them
  Run expected = nullptr;      // where `libtorch` is of the same work, with another result
  double tolerance = 0.02;     // two bfloat16 roundings and the order of a sum
};

class Bench {
 public:
  Bench(torch::Device device, const Sizes& sizes)
      : device_(device), tiny_(device.is_cpu()), s_(sizes) {}
  // True when all results agree.
  bool All();

 private:
  Tensor Random(const std::vector<int64_t>& shape) const {
    return at::randn(shape, Options(torch::kBFloat16));
  }
  Tensor RandomFloat(const std::vector<int64_t>& shape) const {
    return at::randn(shape, Options(torch::kFloat32));
  }
  torch::TensorOptions Options(torch::Dtype dtype) const {
    return torch::TensorOptions(dtype).device(device_);
  }
  double Seconds(const Run& run) const;
  void Show(const Kernel& kernel);

  void Norm();
  void SwiGlu();
  void Rope();
  void HeadLoss();
  void Lora();
  void Rows();
  void Quantized();
  void DecodeAttention();
  void Dropout();
  void Hash();

  const torch::Device device_;
  const bool tiny_;
  const Sizes s_;
  bool agree_ = true;
};

// The gradient of x where y's is `dy`; both functions of x anew.
Run Gradient(const Tensor& x, const Tensor& dy,
             const std::function<Tensor(const Tensor&)>& forward) {
  return [x, dy, forward] {
    const Tensor leaf = x.detach().requires_grad_();
    return torch::autograd::grad({forward(leaf)}, {leaf}, {dy})[0];
  };
}

// Of the pair that is furthest apart.
double Difference(const Results& got, const Results& want) {
  GRAFT_CHECK(got.all.size() == want.all.size(), "other results");
  double most = 0;
  for (size_t i = 0; i < want.all.size(); ++i) {
    const Tensor wide = want.all[i].cpu().to(torch::kFloat32),
                 here = got.all[i].cpu().to(torch::kFloat32);
    const double apart = ((here - wide).norm() / wide.norm()).item<double>();
    if (std::isnan(apart)) return apart;
    most = std::max(most, apart);
  }
  return most;
}

// Of one run, of the median of several rows of runs that last long enough for the clock.
double Bench::Seconds(const Run& run) const {
  using Clock = std::chrono::steady_clock;
  const auto row = [&](int64_t count) {
    models::WaitForDevice(device_);
    const auto begin = Clock::now();
    for (int64_t i = 0; i < count; ++i) run();
    models::WaitForDevice(device_);
    return std::chrono::duration<double>(Clock::now() - begin).count() / static_cast<double>(count);
  };
  const double first = row(1);
  if (tiny_) return first;
  constexpr double kRowSeconds = 0.02;
  row(3);
  const auto count =
      static_cast<int64_t>(std::clamp(kRowSeconds / std::max(row(3), 1e-6), 1.0, 2000.0));
  std::vector<double> seconds(7);
  for (double& one : seconds) one = row(count);
  return Median(seconds);
}

void Bench::Show(const Kernel& kernel) {
  const double apart =
      Difference(kernel.own(), kernel.expected ? kernel.expected() : kernel.libtorch());
  const bool agrees = apart <= kernel.tolerance;
  agree_ = agree_ && agrees;
  const std::string difference = absl::StrCat(apart, agrees ? "" : " DIFFERS");
  const double own = Seconds(kernel.own), libtorch = Seconds(kernel.libtorch);
  const bool moves = kernel.bytes > 0;
  std::printf("%-42s %10.1f us %9.1f %s %10.1f us %6.2f x   %s\n", kernel.name.c_str(), own * 1e6,
              (moves ? kernel.bytes / 1e9 : kernel.flop / 1e12) / own, moves ? "GB/s  " : "TFLOP/s",
              libtorch * 1e6, libtorch / own, difference.c_str());
  std::fflush(stdout);
}

void Bench::Norm() {
  const Tensor x = Random({s_.tokens, s_.hidden}), dy = Random({s_.tokens, s_.hidden});
  const Tensor weight = (RandomFloat({s_.hidden}) * 0.1 + 1).to(torch::kBFloat16);
  const Tensor wide = weight.to(torch::kFloat32);
  const auto own = [=](const Tensor& from) { return models::RmsNorm(from, wide, 1e-5).value; };
  const auto libtorch = [=](const Tensor& from) {
    return at::rms_norm(from, {from.size(1)}, weight, 1e-5);
  };
  const double bytes = 2.0 * static_cast<double>(x.numel());
  Show({"RMSNorm", [=] { return own(x); }, [=] { return libtorch(x); }, 2 * bytes});
  Show({"RMSNorm, forward and backward", Gradient(x, dy, own), Gradient(x, dy, libtorch),
        5 * bytes});
}

void Bench::SwiGlu() {
  const Tensor gate = Random({s_.tokens, s_.inner}), up = Random({s_.tokens, s_.inner}), dy = up;
  const auto own = [=](const Tensor& from) { return models::SwiGlu(from, up).value; };
  const auto libtorch = [=](const Tensor& from) { return at::silu(from) * up; };
  const double bytes = 2.0 * static_cast<double>(gate.numel());
  Show({"SwiGLU", [=] { return own(gate); }, [=] { return libtorch(gate); }, 3 * bytes});
  Show({"SwiGLU, forward and backward of the gate", Gradient(gate, dy, own),
        Gradient(gate, dy, libtorch), 7 * bytes});
}

void Bench::Rope() {
  const int64_t half = s_.head_dim / 2, heads = s_.hidden / s_.head_dim;
  const Tensor x = Random({s_.tokens, s_.hidden});
  const Tensor angles = RandomFloat({s_.tokens, half});
  const models::RopeAngles tables{angles.cos(), angles.sin()};
  const Tensor cosine = at::cat({tables.cosine, tables.cosine}, 1).unsqueeze(1),
               sine = at::cat({tables.sine, tables.sine}, 1).unsqueeze(1);
  const auto libtorch = [=] {  // as transformers' apply_rotary_pos_emb, in float32
    const Tensor wide = x.to(torch::kFloat32).view({x.size(0), heads, 2 * half});
    const Tensor turned = at::cat({-wide.narrow(2, half, half), wide.narrow(2, 0, half)}, 2);
    return (wide * cosine + turned * sine).to(x.scalar_type()).view_as(x);
  };
  Show({"RoPE", [=, this] { return models::Rope(x, tables, s_.head_dim); }, libtorch,
        4.0 * static_cast<double>(x.numel())});
}

void Bench::HeadLoss() {
  const Tensor h = Random({s_.targets, s_.hidden});
  const Tensor weight = Random({s_.vocabulary, s_.hidden}) * 0.02;
  const Tensor ones = at::ones({s_.hidden}, Options(torch::kFloat32));
  const Tensor rows = at::arange(s_.targets, Options(torch::kInt64));
  const models::LossTargets targets{rows, rows * 7919 % s_.vocabulary};
  const models::LossHead head{
      .norm = {.weight = ones, .bias = {}, .eps = 1e-5},
      .projection = models::FrozenLinear(models::MakeFrozenWeight(weight), {})};
  const auto own = [=](const Tensor& from) {
    return models::HeadLossSum(from, targets, head).to(torch::kFloat32);
  };
  const auto libtorch = [=](const Tensor& from) {
    const Tensor normed = at::rms_norm(from, {from.size(1)}, ones.to(from.scalar_type()), 1e-5);
    return at::cross_entropy_loss(at::mm(normed, weight.t()).to(torch::kFloat32), targets.ids, {},
                                  at::Reduction::Sum);
  };
  const Tensor one = at::ones({}, Options(torch::kFloat32));
  Show({"head and loss, forward and backward", Gradient(h, one, own), Gradient(h, one, libtorch), 0,
        4.0 * static_cast<double>(s_.targets * s_.hidden * s_.vocabulary)});
}

void Bench::Lora() {
  const Tensor x = Random({s_.tokens, s_.hidden});
  const std::vector<int64_t> widths = {s_.hidden, s_.key_value, s_.key_value};
  std::vector<Tensor> a, b;
  double columns = 0;
  for (const int64_t width : widths) {
    a.push_back((RandomFloat({s_.rank, s_.hidden}) / 20).requires_grad_());
    b.push_back((RandomFloat({width, s_.rank}) / 4).requires_grad_());
    columns += static_cast<double>(width);
  }
  const auto run = [=](const std::function<Tensor(const Tensor&, size_t, const Tensor&)>& edit) {
    return [=] {
      const Tensor leaf = x.detach().requires_grad_();
      std::vector<Tensor> results, leaves = {leaf};
      for (size_t i = 0; i < a.size(); ++i)
        results.push_back(edit(leaf, i, at::ones({x.size(0), widths[i]}, x.options())));
      leaves.insert(leaves.end(), a.begin(), a.end());
      leaves.insert(leaves.end(), b.begin(), b.end());
      std::vector<Tensor> seeds;
      for (const Tensor& y : results) seeds.push_back(at::ones_like(y));
      std::vector<Tensor> all = torch::autograd::grad(results, leaves, seeds);
      for (const Tensor& y : results) all.push_back(y.detach());
      return Results(std::move(all));
    };
  };
  const auto own = [=] {
    const adapters::LoraTogether shared(a, torch::kBFloat16);
    models::SiteContext context;
    return run([&](const Tensor& leaf, size_t i, const Tensor& y) {
      return adapters::AddProjected(y, *shared.Project(i, {leaf, nullptr}, context), b[i], 2.0);
    })();
  };
  const auto libtorch = run([=](const Tensor& leaf, size_t i, const Tensor& y) {
    const Tensor t = at::mm(leaf, a[i].to(leaf.scalar_type()).t());
    return y + 2.0 * at::mm(t, b[i].to(leaf.scalar_type()).t());
  });
  const double rank = static_cast<double>(s_.rank), rows = static_cast<double>(s_.tokens);
  Show({"LoRA of q, k, v, forward and backward", own, libtorch, 0,
        6.0 * rows * rank * (3.0 * static_cast<double>(s_.hidden) + columns)});
}

// A decoding step whose rows all have adapters of their own.
void Bench::Rows() {
  const int64_t n = s_.decoding, width = s_.hidden, rank = s_.rank;
  const Tensor x = Random({n, width}), down = Random({n, rank, width}) / 60,
               up = Random({n, rank, width});
  const Tensor scales = RandomFloat({n, width}), biases = RandomFloat({n, width});
  adapters::RowTables tables(n, torch::kBFloat16, device_);
  const size_t of_down = tables.AddVectors(rank, width), of_up = tables.AddVectors(rank, width);
  const size_t of_vectors = tables.AddScalesAndBiases(width);
  for (int64_t row = 0; row < n; ++row) {
    tables.Set(of_down, row, row + 1, 0, down[row]);
    tables.Set(of_up, row, row + 1, 0, up[row]);
    tables.SetVector(of_vectors, row, 0, scales[row]);
    tables.SetVector(of_vectors, row, 1, biases[row]);
  }
  if (tables.by_address()) tables.PlaceAt(models::IndexTensor(tables.contents(), device_));
  const Tensor order = at::arange(n, Options(torch::kInt64));
  const auto own = [=] {
    Tensor y = at::zeros_like(x);
    tables.AddUp(of_up, tables.InnerProducts(of_down, x), 0, y);
    return y;
  };
  const auto libtorch = [=] {
    const Tensor t = at::bmm(down.index_select(0, order), x.unsqueeze(2));
    return at::bmm(up.index_select(0, order).transpose(1, 2), t).squeeze(2);
  };
  const double numbers = static_cast<double>(n * width);
  Show({"low-rank edits of rows, each its own", own, libtorch,
        4.0 * static_cast<double>(rank) * numbers});
  Show({"scale and bias of rows, each its own", [=] { return tables.ScaleAndShift(of_vectors, x); },
        [=] {
          return at::addcmul(biases.index_select(0, order), x.to(torch::kFloat32),
                             scales.index_select(0, order))
              .to(x.scalar_type());
        },
        12.0 * numbers});
}

void Bench::Quantized() {
  const Tensor x = Random({s_.tokens / 8, s_.hidden});
  const Tensor weight = at::randn({s_.inner, s_.hidden}) * 0.02;
  for (const auto kind : {models::Quantization::kInt8, models::Quantization::kNf4}) {
    double error = 0;
    const models::QuantizedShape shape{kind, weight.size(0), weight.size(1)};
    const Tensor stored = models::QuantizeMatrix(weight, kind, &error).to(device_);
    const auto matrix = models::MakeQuantizedWeight(stored, shape, torch::kBFloat16);
    const Tensor plain = models::DequantizeMatrix(stored, shape, torch::kBFloat16);
    const std::string name = models::QuantizationName(kind);
    const double numbers = static_cast<double>(shape.size());
    Show({absl::StrCat(name, " to bfloat16 (beside: a copy of the result)"),
          [=] { return models::DequantizeMatrix(stored, shape, torch::kBFloat16); },
          [=] { return plain.clone(); }, static_cast<double>(stored.nbytes()) + 2.0 * numbers});
    Show({absl::StrCat(name, " product (beside: a bfloat16 one)"),
          [=] { return matrix->Multiply(x, torch::kBFloat16); },
          [=] { return at::mm(x, plain.t()); }, 0, 2.0 * static_cast<double>(x.size(0)) * numbers});
  }
}

void Bench::DecodeAttention() {
  const int64_t n = s_.decoding, rows = s_.cached, dim = s_.head_dim;
  const int64_t heads = s_.hidden / dim, kv_heads = s_.key_value / dim;
  const Tensor q = Random({n, s_.hidden}), k = Random({n, s_.key_value}),
               v = Random({n, s_.key_value});
  const models::device::PlacedRows cache{Random({n, rows, s_.key_value}),
                                         Random({n, rows, s_.key_value})};
  models::DecodingInputs decoding;
  decoding.positions = at::full({n}, rows - 1, Options(torch::kInt64));
  decoding.places = at::arange(n, Options(torch::kInt64));
  const models::AttentionShape shape{heads, kv_heads, dim};
  const auto by_head = [=](const Tensor& x, int64_t count) {
    return x.view({n, -1, count, dim}).transpose(1, 2);
  };
  const auto libtorch = [=] {
    cache.keys.select(1, rows - 1).copy_(k);
    cache.values.select(1, rows - 1).copy_(v);
    return at::scaled_dot_product_attention(by_head(q, heads), by_head(cache.keys, kv_heads),
                                            by_head(cache.values, kv_heads), {}, 0.0, false,
                                            std::nullopt, /*enable_gqa=*/true)
        .transpose(1, 2)
        .reshape({n, -1});
  };
  Show({"attention of decoding rows to their cache",
        [=] { return models::device::DecodeAttention(q, k, v, decoding, cache, shape); }, libtorch,
        4.0 * static_cast<double>(n * rows * s_.key_value)});
}

void Bench::Dropout() {
  const Tensor x = Random({s_.tokens, s_.hidden});
  models::MicroBatch batch;
  batch.segments.push_back({.sample_id = 3, .begin = 0, .length = s_.tokens});
  const adapters::DropoutMask mask(1, RandomPurpose::kAdapterDropout, {0, models::Role::kAttnQ},
                                   0.1, batch);
  const auto dropped = [=](const Tensor& from) {
    const Tensor y = from.clone();
    mask.ApplyInPlace({y});
    return y;
  };
  Show({"dropout of a copy (checked: the host's)", [=] { return dropped(x); },
        [=] { return std::get<0>(at::native_dropout(x, 0.1, true)); },
        4.0 * static_cast<double>(x.numel()), 0, [=] { return dropped(x.cpu()); }});
}

void Bench::Hash() {
  const Tensor bytes = Random({s_.inner, s_.hidden}).flatten().view(torch::kUInt8);
  const Tensor words = bytes.view(torch::kInt64);
  const auto as_bytes = [](uint64_t hash) {
    return at::from_blob(&hash, {8}, torch::kUInt8).clone();
  };
  Show({"hash64 and back (beside: a sum of integers)",
        [=] { return as_bytes(models::MemoryHashes({bytes})[0]); },
        [=] { return words.sum().cpu(); }, static_cast<double>(bytes.numel()), 0,
        [=] {
          const Tensor there = bytes.cpu();
          return as_bytes(Hash64(there.const_data_ptr(), there.nbytes()));
        },
        /*tolerance=*/0});
}

bool Bench::All() {
  at::manual_seed(1);
  std::printf("%-42s %13s %17s %13s %8s   %s\n", "", "graft", "", "LibTorch", "faster",
              "difference");
  for (const auto part :
       {&Bench::Norm, &Bench::SwiGlu, &Bench::Rope, &Bench::HeadLoss, &Bench::Lora, &Bench::Rows,
        &Bench::Quantized, &Bench::DecodeAttention, &Bench::Dropout, &Bench::Hash})
    (this->*part)();
  return agree_;
}

int Main(std::string_view device) {
  const auto alone = std::move(comm::MakeLocalCommunicators(1)[0]);
  const bool on_gpu = device == "cuda";
  const auto chosen = trainer::ChooseDevice(on_gpu ? "cuda" : "cpu", *alone);
  if (!chosen.ok()) {
    std::fprintf(stderr, "%s\n", std::string(chosen.status().message()).c_str());
    return 1;
  }
  std::optional<models::DeviceKernelsOnHost> device_forms;
  if (!on_gpu) device_forms.emplace();
  return Bench(*chosen, on_gpu ? Sizes{} : kTiny).All() ? 0 : 1;
}

}  // namespace
}  // namespace graft::bench

int main(int argc, char** argv) {
  const std::string_view device = argc == 2 ? argv[1] : "";
  if (device != "cuda" && device != "host") {
    std::fprintf(stderr, "usage: graft_kernel_bench cuda|host\n");
    return 64;
  }
  graft::InitLogging("graft_kernel_bench");
  return graft::bench::Main(device);
}
