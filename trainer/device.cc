#include "trainer/device.h"

#include <dlfcn.h>
#include <stdlib.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/logging.h"
#include "base/status.h"
#include "base/text.h"
#include "comm/agree.h"
#include "comm/launcher.h"

namespace graft::trainer {
namespace {

// The GPUs that the driver shows to this process, by what is the same in every process. *why: where
// there are none.
std::vector<std::string> VisibleGpus(std::string* why) {
  void* const driver = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  *why = "libcuda.so.1 is not there";
  if (driver == nullptr) return {};
  struct Uuid {
    char bytes[16];
  };
  const auto init = reinterpret_cast<int (*)(unsigned)>(::dlsym(driver, "cuInit"));
  const auto get_count = reinterpret_cast<int (*)(int*)>(::dlsym(driver, "cuDeviceGetCount"));
  const auto get = reinterpret_cast<int (*)(int*, int)>(::dlsym(driver, "cuDeviceGet"));
  // The second version tells parts of a card (MIG) apart.
  void* name = ::dlsym(driver, "cuDeviceGetUuid_v2");
  if (name == nullptr) name = ::dlsym(driver, "cuDeviceGetUuid");
  const auto get_uuid = reinterpret_cast<int (*)(Uuid*, int)>(name);
  *why = "libcuda.so.1 lacks a call";
  if (init == nullptr || get_count == nullptr || get == nullptr || get_uuid == nullptr) return {};
  const auto failed = [why](const char* call, int code) {
    *why = absl::StrCat(call, " failed with CUDA error ", code);
    return code != 0;
  };
  int count = 0;
  if (failed("cuInit", init(0)) || failed("cuDeviceGetCount", get_count(&count))) return {};
  std::vector<std::string> gpus;
  for (int i = 0; i < count; ++i) {
    int device = 0;
    Uuid uuid{};
    if (failed("cuDeviceGet", get(&device, i))) return {};
    if (failed("cuDeviceGetUuid", get_uuid(&uuid, device))) return {};
    gpus.push_back(absl::BytesToHexString(absl::string_view(uuid.bytes, sizeof(uuid.bytes))));
  }
  *why = "libcuda.so.1 counts 0";
  return gpus;
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

// Ranks with the same text share a node.
std::string NodeName() {
  const char* const id = ::getenv("NCCL_HOSTID");
  return absl::StrCat(comm::HostName(), "/", id == nullptr ? "" : id);
}

// What the ranks see, by rank; *why: where this one sees nothing.
std::vector<VisibleGpusOfRank> GatherGpus(comm::Communicator& all, std::string* why) {
  const std::string mine = absl::StrCat(NodeName(), "\n", absl::StrJoin(VisibleGpus(why), ","));
  std::vector<VisibleGpusOfRank> ranks;
  for (const std::string& text : comm::AllGatherStrings(all, mine)) {
    const std::vector<std::string> parts = absl::StrSplit(text, '\n');
    ranks.push_back({parts[0], absl::StrSplit(parts[1], ',', absl::SkipEmpty())});
  }
  return ranks;
}

// Whether this rank has the GPU that was chosen for it.
absl::Status CheckGpu(const std::vector<VisibleGpusOfRank>& ranks, size_t mine, int chosen,
                      const std::string& why_none) {
  const std::string found = "parallel.device: found cuda, but ";
  const size_t gpus = ranks[mine].gpus.size();
  if (gpus == 0) {
    return RecipeError(absl::StrCat(found, comm::HostName(), " shows no GPU (", why_none,
                                    "); allowed here: auto, cpu"));
  }
  if (chosen < 0) {
    const auto on_node = std::count_if(ranks.begin(), ranks.end(), [&](const auto& rank) {
      return rank.node == ranks[mine].node;
    });
    return RecipeError(absl::StrCat(found, on_node, " ranks run on ", comm::HostName(),
                                    ", which shows ", gpus, gpus == 1 ? " GPU" : " GPUs",
                                    " to rank ", mine,
                                    ", none of them free; allowed: one rank for each GPU"));
  }
  if (const std::string& error = LoadCudaHalf(); !error.empty()) {
    return RecipeError(absl::StrCat(found, "LibTorch's CUDA half does not load: ", error,
                                    "; allowed here: auto, cpu"));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<int> AssignGpus(const std::vector<VisibleGpusOfRank>& ranks) {
  std::vector<size_t> order(ranks.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&ranks](size_t a, size_t b) {
    return ranks[a].gpus.size() < ranks[b].gpus.size();
  });
  std::set<std::pair<std::string, std::string>> taken;  // node, GPU
  std::vector<int> chosen(ranks.size(), -1);
  for (const size_t rank : order) {
    const auto& [node, gpus] = ranks[rank];
    for (size_t i = 0; i < gpus.size() && chosen[rank] < 0; ++i) {
      if (taken.insert({node, gpus[i]}).second) chosen[rank] = static_cast<int>(i);
    }
  }
  return chosen;
}

absl::StatusOr<torch::Device> ChooseDevice(const std::string& wanted, comm::Communicator& all) {
  if (wanted == "cpu") return torch::Device(torch::kCPU);
  std::string why_none;
  const std::vector<VisibleGpusOfRank> ranks = GatherGpus(all, &why_none);
  const auto mine = static_cast<size_t>(all.rank());
  const int chosen = AssignGpus(ranks)[mine];
  const absl::Status status = comm::AgreeOnStatus(all, CheckGpu(ranks, mine, chosen, why_none));
  if (!status.ok()) {
    if (wanted != "auto") return status;
    const bool any = std::any_of(ranks.begin(), ranks.end(),
                                 [](const auto& rank) { return !rank.gpus.empty(); });
    if (any && mine == 0) LOG(WARNING) << "device auto is cpu: " << status.message();
    return torch::Device(torch::kCPU);
  }
  const torch::Device device(torch::kCUDA, static_cast<torch::DeviceIndex>(chosen));
  c10::impl::getDeviceGuardImpl(torch::kCUDA)->setDevice(device);
  return device;
}

void AllowUnrepeatableKernels() {
  at::globalContext().setDeterministicAlgorithms(false, /*warn_only=*/false);
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
