#include "models/device.h"

#include <atomic>

#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "base/status.h"

namespace graft::models {
namespace {

std::atomic<int> device_kernels_on_host = 0;

thread_local KeptCopies* kept_copies = nullptr;  // of the run on this thread
std::atomic<int> kept_runs = 0;                  // on all threads

// A copy that outlives the pass and is there when this returns, whatever stream the pass runs on.
// Not among the blocks of that stream, if it records: other recordings use them too (gpu_graph.h).
torch::Tensor LastingCopy(const torch::Tensor& host, torch::Device device) {
  if (!device.is_cuda()) return host.to(device);
  const auto* guard = c10::impl::getDeviceGuardImpl(device.type());
  const c10::StreamGuard on_default(guard->getDefaultStream(device));
  return host.to(device);
}

}  // namespace

bool UsesHostKernels(const torch::Tensor& x) {
  return x.is_cpu() && device_kernels_on_host.load(std::memory_order_relaxed) == 0;
}

torch::Tensor ToDevice(const torch::Tensor& host, torch::Device device) {
  if (kept_copies != nullptr) return kept_copies->Next(host, device);
  GRAFT_CHECK(!device.is_cuda() || kept_runs.load(std::memory_order_relaxed) == 0,
              "another thread copies to the GPU in a pass that is recorded");
  return device.is_cuda() ? host.pin_memory().to(device, /*non_blocking=*/true) : host.to(device);
}

torch::Tensor IndexTensor(const std::vector<int64_t>& numbers, torch::Device device) {
  return ToDevice(torch::tensor(numbers, torch::kInt64), device);
}

void CopyToDevice(const torch::Tensor& host, const torch::Tensor& there) {
  there.copy_(there.is_cuda() ? host.pin_memory() : host, /*non_blocking=*/true);
}

KeptCopies::Run::Run(KeptCopies& copies) {
  GRAFT_CHECK(kept_copies == nullptr, "a pass that is recorded inside another one");
  copies.next_ = 0;
  kept_copies = &copies;
  ++kept_runs;
}

KeptCopies::Run::~Run() {
  --kept_runs;
  kept_copies = nullptr;
}

torch::Tensor KeptCopies::Next(const torch::Tensor& host, torch::Device device) {
  if (next_ == copies_.size()) copies_.push_back({host, LastingCopy(host, device)});
  const Copy& copy = copies_[next_++];
  GRAFT_CHECK(copy.there.device().type() == device.type() &&
                  copy.host.scalar_type() == host.scalar_type() && at::equal(copy.host, host),
              "a pass that is run again asks for other numbers than before");
  return copy.there;
}

void WaitForDevice(torch::Device device) {
  if (!device.is_cpu())
    c10::impl::getDeviceGuardImpl(device.type())->synchronizeDevice(device.index());
}

DeviceKernelsOnHost::DeviceKernelsOnHost() { ++device_kernels_on_host; }
DeviceKernelsOnHost::~DeviceKernelsOnHost() { --device_kernels_on_host; }

}  // namespace graft::models
