#include "adapters/dropout.h"

#include <cmath>

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include "base/status.h"
#include "base/vector_clones.h"
#include "models/device.h"

namespace graft::adapters {
namespace {

constexpr char kGpuSource[] =
#include "adapters/dropout_gpu.inc"
    ;
constexpr int kGpuThreads = 256;
constexpr int kLanes = 16;  // Philox blocks drawn side by side

// base/philox.h's ten rounds for kLanes counters (c0, c1, c2, first + lane), so that they
// vectorise. Draws go out as they are numbered: feature 4 * lane + word.
GRAFT_CLONES void PhiloxLanes(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t first,
                              uint32_t* draws) {
  uint32_t x0[kLanes], x1[kLanes], x2[kLanes], x3[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    x0[i] = c0;
    x1[i] = c1;
    x2[i] = c2;
    x3[i] = first + static_cast<uint32_t>(i);
  }
  auto low = static_cast<uint32_t>(key);
  auto high = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t product0 = uint64_t{0xD2511F53} * x0[i];
      const uint64_t product1 = uint64_t{0xCD9E8D57} * x2[i];
      x0[i] = static_cast<uint32_t>(product1 >> 32) ^ x1[i] ^ low;
      x1[i] = static_cast<uint32_t>(product1);
      x2[i] = static_cast<uint32_t>(product0 >> 32) ^ x3[i] ^ high;
      x3[i] = static_cast<uint32_t>(product0);
    }
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  for (int i = 0; i < kLanes; ++i) {
    draws[4 * i] = x0[i];
    draws[4 * i + 1] = x1[i];
    draws[4 * i + 2] = x2[i];
    draws[4 * i + 3] = x3[i];
  }
}

template <typename T>
void MultiplyRow(const float* mask, T* row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    row[i] = static_cast<T>(static_cast<at::opmath_type<T>>(row[i]) * mask[i]);
  }
}

void MultiplyRow(const float* mask, const torch::Tensor& tensor, int64_t row) {
  const int64_t n = tensor.size(1);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, tensor.scalar_type(), "dropout", [&] {
    MultiplyRow(mask, tensor.data_ptr<scalar_t>() + row * n, n);
  });
}

uint32_t Threshold(double probability) {
  return static_cast<uint32_t>(std::llround(probability * 4294967296.0));
}

}  // namespace

models::GpuKernels& DropoutKernel() {
  static models::GpuKernels kernels("dropout", kGpuSource);
  return kernels;
}

DropoutMask::DropoutMask(uint64_t seed, RandomPurpose purpose, models::SiteId site,
                         double probability, const models::MicroBatch& batch)
    : key_(PhiloxKey(seed, purpose, static_cast<uint64_t>(batch.step),
                     static_cast<uint64_t>(site.layer), static_cast<uint64_t>(site.role))),
      threshold_(Threshold(probability)),
      keep_scale_(static_cast<float>(1.0 / (1.0 - probability))),
      segments_(batch.segments) {}

void DropoutMask::DrawRow(int64_t segment, int64_t position, float* mask,
                          int64_t num_features) const {
  const auto sample = static_cast<uint64_t>(segments_[static_cast<size_t>(segment)].sample_id);
  uint32_t draws[4 * kLanes];
  for (int64_t f = 0; f < num_features; f += 4 * kLanes) {
    PhiloxLanes(key_, static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32),
                static_cast<uint32_t>(position), static_cast<uint32_t>(f / 4), draws);
    const int64_t count = std::min<int64_t>(4 * kLanes, num_features - f);
    for (int64_t i = 0; i < count; ++i) mask[f + i] = draws[i] < threshold_ ? 0.0f : keep_scale_;
  }
}

void DropoutMask::ApplyInPlace(const std::vector<torch::Tensor>& tensors) const {
  if (tensors.empty()) return;
  for (const torch::Tensor& tensor : tensors) {
    GRAFT_CHECK(tensor.sizes() == tensors[0].sizes() && tensor.is_contiguous(),
                "dropout needs contiguous tensors of one shape");
  }
  if (models::UsesHostKernels(tensors[0])) return ApplyOnHost(tensors);
  if (ApplyOnGpu(tensors)) return;
  // Another device gets the mask from the host: the draws are the same there.
  const torch::Tensor mask = at::ones(tensors[0].sizes(), at::kFloat);
  ApplyOnHost({mask});
  const torch::Tensor moved = mask.to(tensors[0].device());
  for (const torch::Tensor& tensor : tensors) tensor.mul_(moved);
}

void DropoutMask::ApplyOnHost(const std::vector<torch::Tensor>& tensors) const {
  const int64_t num_features = tensors[0].size(1);
  for (size_t s = 0; s < segments_.size(); ++s) {
    const models::Segment& segment = segments_[s];
    at::parallel_for(0, segment.length, 16, [&](int64_t begin, int64_t end) {
      std::vector<float> mask(static_cast<size_t>(num_features));
      for (int64_t position = begin; position < end; ++position) {
        DrawRow(static_cast<int64_t>(s), position, mask.data(), num_features);
        for (const torch::Tensor& tensor : tensors)
          MultiplyRow(mask.data(), tensor, segment.begin + position);
      }
    });
  }
}

bool DropoutMask::ApplyOnGpu(const std::vector<torch::Tensor>& tensors) const {
  const int64_t num_rows = tensors[0].size(0), num_features = tensors[0].size(1);
  models::GpuKernels::Variant variant;
  for (const torch::Tensor& tensor : tensors) {
    if (!DropoutKernel().Fits({tensor}, /*row=*/1, &variant)) return false;
  }
  std::vector<int64_t> samples;
  for (const models::Segment& segment : segments_) {
    if (segment.length == 0) continue;
    samples.push_back(segment.begin);
    samples.push_back(segment.sample_id);
  }
  const torch::Tensor table = models::IndexTensor(samples, tensors[0].device());
  const int64_t draws_a_row = (num_features + 3) / 4, num_draws = num_rows * draws_a_row;
  for (const torch::Tensor& tensor : tensors) {
    DropoutKernel().Fits({tensor}, /*row=*/1, &variant);
    models::GpuArguments arguments;
    arguments.Add(tensor).Add(table).Add(table.numel() / 2).Add(num_features);
    arguments.Add(draws_a_row).Add(num_draws);
    arguments.Add(static_cast<uint32_t>(key_)).Add(static_cast<uint32_t>(key_ >> 32));
    arguments.Add(threshold_).Add(keep_scale_);
    DropoutKernel().Launch("Dropout", variant, tensor.device(),
                           (num_draws + kGpuThreads - 1) / kGpuThreads, kGpuThreads,
                           arguments.Pointers());
  }
  return true;
}

}  // namespace graft::adapters
