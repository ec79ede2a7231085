// What tensor code asks of the device that it runs on. Used by layers and methods, which have loops
// of their own for host memory and leave every other device to LibTorch's operators and to the
// kernels of models/gpu_kernels.h.
#pragma once

#include <cstddef>
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
// The host tensor into `there`, which has its shape and type and keeps its address; as ToDevice.
void CopyToDevice(const torch::Tensor& host, const torch::Tensor& there);

// What ToDevice and IndexTensor made in a pass, for later runs of the same pass: a recorded one
// (gpu_graph.h) must not copy, since a replay would copy from host memory that has other contents
// by then. Used by sharding/step_graph.cc.
class KeptCopies {
 public:
  // While one lives, this thread's calls give, in their order, what those of the first run made,
  // which wait for their copies. Errors of kind bug: a later run asks for other numbers; another
  // thread (autograd's) copies to a GPU meanwhile.
  class Run {
   public:
    explicit Run(KeptCopies& copies);
    ~Run();
    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;
  };

 private:
  friend torch::Tensor ToDevice(const torch::Tensor& host, torch::Device device);
  torch::Tensor Next(const torch::Tensor& host, torch::Device device);
  struct Copy {
    torch::Tensor host, there;
  };
  std::vector<Copy> copies_;
  size_t next_ = 0;
};

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
