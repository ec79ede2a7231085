#include "trainer/device.h"

#include <dlfcn.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/text.h"
#include "comm/agree.h"
#include "comm/launcher.h"

namespace graft::trainer {
namespace {

// GPUs that the driver shows to this process; 0 where there is no driver.
int CountGpus() {
  static const int count = [] {
    void* const driver = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (driver == nullptr) return 0;
    const auto init = reinterpret_cast<int (*)(unsigned)>(::dlsym(driver, "cuInit"));
    const auto get_count = reinterpret_cast<int (*)(int*)>(::dlsym(driver, "cuDeviceGetCount"));
    int found = 0;
    if (init == nullptr || get_count == nullptr || init(0) != 0 || get_count(&found) != 0) return 0;
    return found;
  }();
  return count;
}

// Empty, or why LibTorch's CUDA half is not there.
const std::string& LoadCudaHalf() {
  static const std::string* const error = [] {
    // cuBLAS repeats its results only with workspaces of fixed size.
    ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    for (const char* library : {"libc10_cuda.so", "libtorch_cuda.so"}) {
      if (::dlopen(library, RTLD_LAZY | RTLD_GLOBAL) == nullptr)
        return new std::string(::dlerror());
    }
    if (!at::hasCUDA()) return new std::string("it knows no GPU");
    // Kernels that add in no fixed order have a twin that does: the same run twice is the same
    // bits.
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    return new std::string();
  }();
  return *error;
}

struct Place {
  int rank_on_node = 0;
  int ranks_on_node = 0;
};

Place PlaceOnNode(comm::Communicator& all) {
  const char* const id = ::getenv("NCCL_HOSTID");
  const std::string mine = absl::StrCat(comm::HostName(), "\n", id == nullptr ? "" : id);
  const std::vector<std::string> nodes = comm::AllGatherStrings(all, mine);
  Place place;
  for (int rank = 0; rank < all.size(); ++rank) {
    if (nodes[static_cast<size_t>(rank)] != mine) continue;
    if (rank < all.rank()) ++place.rank_on_node;
    ++place.ranks_on_node;
  }
  return place;
}

// Whether this rank can have a GPU.
absl::Status CheckGpu(const Place& place) {
  const std::string found = "parallel.device: found cuda, but ";
  const int gpus = CountGpus();
  if (gpus == 0) {
    return RecipeError(absl::StrCat(found, comm::HostName(),
                                    " shows no GPU (libcuda.so.1 counts 0, or is not there); "
                                    "allowed here: auto, cpu"));
  }
  if (place.ranks_on_node > gpus) {
    return RecipeError(absl::StrCat(found, place.ranks_on_node, " ranks run on ", comm::HostName(),
                                    ", which shows ", gpus, gpus == 1 ? " GPU" : " GPUs",
                                    "; allowed: one rank for each GPU"));
  }
  if (const std::string& error = LoadCudaHalf(); !error.empty()) {
    return RecipeError(absl::StrCat(found, "LibTorch's CUDA half does not load: ", error,
                                    "; allowed here: auto, cpu"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<torch::Device> ChooseDevice(const std::string& wanted, comm::Communicator& all) {
  if (wanted == "cpu") return torch::Device(torch::kCPU);
  const Place place = PlaceOnNode(all);
  const absl::Status status = comm::AgreeOnStatus(all, CheckGpu(place));
  if (!status.ok()) {
    if (wanted == "auto") return torch::Device(torch::kCPU);
    return status;
  }
  const torch::Device device(torch::kCUDA, static_cast<torch::DeviceIndex>(place.rank_on_node));
  c10::impl::getDeviceGuardImpl(torch::kCUDA)->setDevice(device);
  return device;
}

DeviceMemory DeviceMemoryOf(torch::Device device) {
  c10::DeviceAllocator* const allocator = at::getDeviceAllocator(device.type());
  const auto stats = allocator->getDeviceStats(device.index());
  const auto [free, total] = allocator->getMemoryInfo(device.index());
  return {
      .held = stats.reserved_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)]
                  .current,
      .free = static_cast<int64_t>(free),
      .total = static_cast<int64_t>(total)};
}

absl::Status CheckFits(int64_t predicted, const DeviceMemory& now) {
  if (predicted <= now.held + now.free) return absl::OkStatus();
  return RecipeError(absl::StrCat(
      "GPU memory: predicted ", FormatBytes(predicted), ", this rank holds ", FormatBytes(now.held),
      " and ", FormatBytes(now.free), " of ", FormatBytes(now.total),
      " are free; smaller: optim.micro_batch, model.recompute: layer, model.quantize, "
      "parallel.pipeline, parallel.shard_weights"));
}

absl::Status ReserveDeviceBytes(torch::Device device, int64_t bytes) {
  if (bytes <= 0) return absl::OkStatus();
  try {
    const torch::Tensor piece =
        at::empty({bytes}, torch::TensorOptions(torch::kUInt8).device(device));
  } catch (const c10::OutOfMemoryError& error) {
    return RecipeError(absl::StrCat(
        "parallel.reserve_memory: ", FormatBytes(bytes),
        " more are predicted, the GPU has no such piece: ", error.what_without_backtrace()));
  }
  return absl::OkStatus();
}

int64_t PeakDeviceBytes(torch::Device device) {
  const auto stats = at::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return stats.reserved_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
}

int64_t PeakTensorBytes(torch::Device device) {
  const auto stats = at::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)]
      .peak;
}

void ResetPeakTensorBytes(torch::Device device) {
  at::getDeviceAllocator(device.type())->resetPeakStats(device.index());
}

}  // namespace graft::trainer
