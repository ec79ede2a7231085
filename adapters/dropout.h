// Dropout whose mask is a pure function of (seed, step, layer, site, sample, position, feature):
// the same for every micro-batch split, packing, stage and rank, and drawn again in the backward
// pass instead of being kept (methods.md 1.2). Used by the methods' Functions.
//
// Shapes: N rows of the micro-batch, F features.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "base/philox.h"
#include "models/gpu_kernels.h"
#include "models/site.h"

namespace graft::adapters {

class DropoutMask {
 public:
  // The mask of one site in one forward pass; remembers the samples of `batch`, not the batch.
  // 0 <= probability < 1. `seed` is run.seed.
  DropoutMask(uint64_t seed, RandomPurpose purpose, models::SiteId site, double probability,
              const models::MicroBatch& batch);

  // Multiplies each (N, F) tensor in place by the mask: 0 where dropped, else 1 / (1 - p). All have
  // the same shape; the mask is drawn once for all of them.
  void ApplyInPlace(const std::vector<torch::Tensor>& tensors) const;

 private:
  void ApplyOnHost(const std::vector<torch::Tensor>& tensors) const;
  // False where the kernel does not run.
  bool ApplyOnGpu(const std::vector<torch::Tensor>& tensors) const;
  void DrawRow(int64_t segment, int64_t position, float* mask, int64_t num_features) const;

  uint64_t key_;
  uint32_t threshold_;  // dropped when the draw is below it
  float keep_scale_;
  std::vector<models::Segment> segments_;
};

// The kernel, for tests that compile it where there is no GPU.
models::GpuKernels& DropoutKernel();

}  // namespace graft::adapters
