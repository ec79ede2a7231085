// What tensor code asks of the device that it runs on. Used by layers and methods, which have loops
// of their own for host memory and leave every other device to LibTorch's operators and to the
// kernels of models/gpu_kernels.h.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

namespace graft::models {

// True where the loops of layers/ and adapters/ run: in host memory.
bool UsesHostKernels(const torch::Tensor& x);

// The host tensor on `device`. The copy to a GPU is taken from pinned memory and does not wait for
// what the GPU is doing.
torch::Tensor ToDevice(const torch::Tensor& host, torch::Device device);
// (n) int64 on `device`.
torch::Tensor IndexTensor(const std::vector<int64_t>& numbers, torch::Device device);

// Waits for all that the device was given; nothing on the host.
void WaitForDevice(torch::Device device);

// Tests: while one lives, host tensors take the way of all other devices, so that its arithmetic is
// compared where there is no GPU.
class DeviceKernelsOnHost {
 public:
  DeviceKernelsOnHost();
  ~DeviceKernelsOnHost();
  DeviceKernelsOnHost(const DeviceKernelsOnHost&) = delete;
  DeviceKernelsOnHost& operator=(const DeviceKernelsOnHost&) = delete;
};

}  // namespace graft::models
