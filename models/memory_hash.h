// hash64 (base/hash.h) of tensors' memory where it lies: in host memory, or on a GPU by a kernel of
// graft's own, which brings back 8 bytes a tensor. The same number on both. Used by who watches
// that frozen weights stay as they are.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

namespace graft::models {

class GpuKernels;  // models/gpu_kernels.h

// hash64 of each of `tensors` (uint8 (n), contiguous, from any address); those that are not in host
// memory lie on one device. The host waits for that device once in all; where the kernel does not
// run (gpu_kernels.h), once for each 16 MiB, which it copies and hashes itself.
std::vector<uint64_t> MemoryHashes(const std::vector<torch::Tensor>& tensors);

// The kernel, for tests that compile it where there is no GPU.
GpuKernels& HashKernels();

}  // namespace graft::models
