#include "models/weights/weight_source.h"

#include <cstdint>
#include <functional>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/mapped_file.h"
#include "base/philox.h"
#include "base/status.h"
#include "base/vector_clones.h"

namespace graft::models {
namespace {

absl::StatusOr<torch::Dtype> FloatType(const TensorView& view, const std::string& where) {
  switch (view.type) {
    case TensorType::kFloat32:
      return torch::kFloat32;
    case TensorType::kBFloat16:
      return torch::kBFloat16;
    case TensorType::kFloat16:
      return torch::kFloat16;
    default:
      return InputError(absl::StrCat(where, ": dtype is ", TensorTypeName(view.type),
                                     ", must be F32, BF16 or F16"));
  }
}

class FolderWeights : public WeightSource {
 public:
  explicit FolderWeights(std::shared_ptr<WeightFolder> folder) : folder_(std::move(folder)) {}
  bool Has(const std::string& name) const override { return folder_->Has(name); }

  absl::StatusOr<torch::Tensor> Load(const std::string& name, const std::vector<int64_t>& shape,
                                     torch::Dtype dtype) override {
    GRAFT_ASSIGN_OR_RETURN(const TensorView view, folder_->Find(name));
    const std::string where = absl::StrCat(folder_->folder(), ": tensor ", name);
    if (view.shape != shape) {
      return InputError(absl::StrCat(where, ": shape is [", absl::StrJoin(view.shape, ", "),
                                     "], config.json asks for [", absl::StrJoin(shape, ", "), "]"));
    }
    GRAFT_ASSIGN_OR_RETURN(const torch::Dtype stored, FloatType(view, where));
    // The mapping stays alive with the tensor; pages are read when they are first used. It is
    // read-only: nothing frozen is ever written.
    std::shared_ptr<WeightFolder> keep = folder_;
    void* data = const_cast<uint8_t*>(view.data);
    const bool aligned = reinterpret_cast<uintptr_t>(view.data) % 64 == 0;
    const auto drop = [keep, bytes = static_cast<size_t>(view.bytes)](void* first) {
      DropPages(first, bytes);  // converted, quantised or packed: not read again
    };
    const torch::Tensor mapped = at::from_blob(data, shape, drop, torch::dtype(stored));
    if (stored == dtype && aligned) return mapped;
    return mapped.to(dtype, /*non_blocking=*/false, /*copy=*/true);
  }

 private:
  std::shared_ptr<WeightFolder> folder_;
};

// Values [begin, end) of a tensor: each the sum of the four 16-bit parts of a hash of its place.
GRAFT_CLONES void FillNearlyNormal(uint64_t key, float deviation, int64_t begin, int64_t end,
                                   float* out) {
  constexpr int kMean = 2 * 65535;
  constexpr float kSteps = 37837.227f;  // standard deviation of such a sum: 65536 / sqrt(3)
  const float step = deviation / kSteps;
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    uint64_t x = key + static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    const auto sum = static_cast<int32_t>((x & 0xffff) + ((x >> 16) & 0xffff) +
                                          ((x >> 32) & 0xffff) + (x >> 48));
    out[i] = static_cast<float>(sum - kMean) * step;
  }
}

class RandomWeights : public WeightSource {
 public:
  RandomWeights(double deviation, uint64_t seed, torch::Device device)
      : deviation_(deviation), seed_(seed), device_(device) {}
  bool Has(const std::string&) const override { return true; }
  absl::StatusOr<torch::Tensor> Load(const std::string& name, const std::vector<int64_t>& shape,
                                     torch::Dtype dtype) override {
    if (IsNormWeight(name)) return at::ones(shape, torch::TensorOptions(dtype).device(device_));
    if (!device_.is_cpu()) return MadeOnDevice(name, shape, dtype);
    torch::Tensor values = at::empty(shape, torch::kFloat32);
    constexpr int64_t kGrain = 1 << 16;
    const uint64_t key = SplitMix64(seed_ ^ NameHash(name));
    at::parallel_for(0, values.numel(), kGrain, [&](int64_t begin, int64_t end) {
      FillNearlyNormal(key, static_cast<float>(deviation_), begin, end, values.data_ptr<float>());
    });
    return values.to(dtype);
  }

 private:
  torch::Tensor MadeOnDevice(const std::string& name, const std::vector<int64_t>& shape,
                             torch::Dtype dtype) const {
    at::Generator generator = at::globalContext().defaultGenerator(device_).clone();
    generator.set_current_seed(SplitMix64(seed_ ^ NameHash(name)));
    torch::Tensor values = at::empty(shape, torch::TensorOptions(dtype).device(device_));
    return values.normal_(0.0, deviation_, generator);
  }
  // "input_layernorm.weight", "LayerNorm.weight", "ln_1.weight".
  static bool IsNormWeight(const std::string& name) {
    return absl::EndsWith(name, ".weight") &&
           (absl::StrContains(name, "norm") || absl::StrContains(name, "Norm") ||
            absl::StrContains(name, ".ln_"));
  }
  // FNV-1a: stable over machines, unlike std::hash.
  static uint64_t NameHash(const std::string& name) {
    uint64_t hash = 1469598103934665603ULL;
    for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
    return hash;
  }
  double deviation_;
  uint64_t seed_;
  torch::Device device_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WeightSource>> OpenFolderWeights(const std::string& folder,
                                                                SafetensorsFile::Options options) {
  GRAFT_ASSIGN_OR_RETURN(std::shared_ptr<WeightFolder> opened, WeightFolder::Open(folder, options));
  return std::unique_ptr<WeightSource>(std::make_unique<FolderWeights>(std::move(opened)));
}

std::unique_ptr<WeightSource> SyntheticWeights(const ModelConfig& config, uint64_t seed,
                                               torch::Device device) {
  return std::make_unique<RandomWeights>(config.initializer_range, seed, device);
}

}  // namespace graft::models
