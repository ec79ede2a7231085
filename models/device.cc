#include "models/device.h"

#include <atomic>

#include <ATen/ATen.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace graft::models {
namespace {

std::atomic<int> device_kernels_on_host = 0;

}  // namespace

bool UsesHostKernels(const torch::Tensor& x) {
  return x.is_cpu() && device_kernels_on_host.load(std::memory_order_relaxed) == 0;
}

torch::Tensor ToDevice(const torch::Tensor& host, torch::Device device) {
  return device.is_cuda() ? host.pin_memory().to(device, /*non_blocking=*/true) : host.to(device);
}

torch::Tensor IndexTensor(const std::vector<int64_t>& numbers, torch::Device device) {
  return ToDevice(torch::tensor(numbers, torch::kInt64), device);
}

void WaitForDevice(torch::Device device) {
  if (!device.is_cpu())
    c10::impl::getDeviceGuardImpl(device.type())->synchronizeDevice(device.index());
}

DeviceKernelsOnHost::DeviceKernelsOnHost() { ++device_kernels_on_host; }
DeviceKernelsOnHost::~DeviceKernelsOnHost() { --device_kernels_on_host; }

}  // namespace graft::models
