#include "models/gpu_graph.h"

#include <dlfcn.h>

#include <exception>
#include <map>
#include <mutex>
#include <utility>

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "models/gpu_driver.h"

namespace graft::models {
namespace {

// CU_STREAM_CAPTURE_MODE_RELAXED: LibTorch's allocator may still get memory while a step is
// recorded.
constexpr int kRelaxed = 2;

struct Streams {
  c10::Stream serving, recording;
};

const Streams& StreamsOf(torch::Device gpu) {
  static std::mutex mutex;
  static auto* const streams = new std::map<int, Streams>();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = streams->find(gpu.index());
  if (found != streams->end()) return found->second;
  const auto* guard = c10::impl::getDeviceGuardImpl(gpu.type());
  // Two calls in a row give two streams: LibTorch hands them out in turn.
  const c10::Stream serving = guard->getStreamFromGlobalPool(gpu, /*isHighPriority=*/false);
  const c10::Stream recording = guard->getStreamFromGlobalPool(gpu, /*isHighPriority=*/false);
  return streams->emplace(gpu.index(), Streams{serving, recording}).first->second;
}

// Bytes that LibTorch's allocator has given back to the driver so far.
int64_t BytesGivenBack(torch::Device gpu) {
  const auto stats = at::getDeviceAllocator(gpu.type())->getDeviceStats(gpu.index());
  return stats.reserved_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)]
      .freed;
}

// A recording that failed leaves an error that LibTorch would find behind its next launch.
void ForgetLastError() {
  using GetLastError = int();
  static auto* const get_last_error =
      reinterpret_cast<GetLastError*>(::dlsym(RTLD_DEFAULT, "cudaGetLastError"));
  if (get_last_error != nullptr) get_last_error();
}

// The recorded run of body(), a CUgraph.
absl::StatusOr<void*> RecordOnce(const GpuDriver& driver, void* stream,
                                 const std::function<void()>& body) {
  if (const int code = driver.begin_capture(stream, kRelaxed); code != 0)
    return BugError(absl::StrCat("cuStreamBeginCapture failed with CUDA error ", code));
  std::string error;
  try {
    body();
  } catch (const std::exception& exception) {
    error = exception.what();
  }
  void* graph = nullptr;
  const int code = driver.end_capture(stream, &graph);
  if (error.empty() && code != 0)
    error = absl::StrCat("cuStreamEndCapture failed with CUDA error ", code);
  if (error.empty()) return graph;
  if (graph != nullptr) driver.destroy_graph(graph);
  ForgetLastError();
  return BugError(error);
}

}  // namespace

c10::Stream ServingStream(torch::Device gpu) { return StreamsOf(gpu).serving; }

absl::StatusOr<std::unique_ptr<GpuGraph>> GpuGraph::Record(torch::Device gpu,
                                                           const std::function<void()>& body) {
  const GpuDriver* const driver = GpuDriver::Get();
  if (!gpu.is_cuda() || driver == nullptr) return BugError("there is no GPU to record for");
  const c10::Stream stream = StreamsOf(gpu).recording;
  const auto* guard = c10::impl::getDeviceGuardImpl(gpu.type());
  guard->synchronizeDevice(gpu.index());
  const c10::StreamGuard on_stream(stream);
  try {
    body();
    guard->synchronizeStream(stream);
  } catch (const std::exception& exception) {
    return BugError(exception.what());
  }
  const int64_t given_back = BytesGivenBack(gpu);  // what is given back while it records counts
  GRAFT_ASSIGN_OR_RETURN(void* const graph, RecordOnce(*driver, stream.native_handle(), body));
  void* executable = nullptr;
  const int code = driver->instantiate(&executable, graph, /*flags=*/0);
  driver->destroy_graph(graph);
  if (code != 0) {
    ForgetLastError();
    return BugError(absl::StrCat("cuGraphInstantiate failed with CUDA error ", code));
  }
  return std::unique_ptr<GpuGraph>(new GpuGraph(gpu, executable, given_back));
}

GpuGraph::~GpuGraph() { GpuDriver::Get()->destroy_executable(executable_); }

bool GpuGraph::IsValid() const { return BytesGivenBack(gpu_) == given_back_; }

void GpuGraph::Launch() const {
  GpuDriver::Check(GpuDriver::Get()->launch_graph(executable_, CurrentGpuStream(gpu_)),
                   "cuGraphLaunch");
}

}  // namespace graft::models
