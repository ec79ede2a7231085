#include "models/gpu_driver.h"

#include <dlfcn.h>

#include <optional>
#include <type_traits>

#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::models {
namespace {

std::optional<GpuDriver> LoadDriver() {
  void* const library = OpenLibrary({"libcuda.so.1"});
  if (library == nullptr) return std::nullopt;
  GpuDriver driver{};
  bool complete = true;
  const auto find = [&](const char* name, auto** function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(::dlsym(library, name));
    complete = complete && *function != nullptr;
  };
  find("cuDeviceGetAttribute", &driver.attribute);
  find("cuCtxGetCurrent", &driver.current_context);
  find("cuDevicePrimaryCtxRetain", &driver.retain_context);
  find("cuCtxSetCurrent", &driver.set_context);
  find("cuModuleLoadData", &driver.load);
  find("cuModuleGetFunction", &driver.function);
  find("cuLaunchKernel", &driver.launch);
  find("cuStreamBeginCapture_v2", &driver.begin_capture);
  find("cuStreamEndCapture", &driver.end_capture);
  find("cuGraphInstantiateWithFlags", &driver.instantiate);
  find("cuGraphLaunch", &driver.launch_graph);
  find("cuGraphDestroy", &driver.destroy_graph);
  find("cuGraphExecDestroy", &driver.destroy_executable);
  return complete ? std::optional(driver) : std::nullopt;
}

}  // namespace

void* OpenLibrary(const std::vector<const char*>& names) {
  for (const char* name : names) {
    if (void* const library = ::dlopen(name, RTLD_LAZY | RTLD_LOCAL)) return library;
  }
  return nullptr;
}

const GpuDriver* GpuDriver::Get() {
  static const std::optional<GpuDriver> driver = LoadDriver();
  return driver.has_value() ? &*driver : nullptr;
}

void GpuDriver::UseDevice(int device) const {
  void* context = nullptr;
  current_context(&context);
  if (context != nullptr) return;
  Check(retain_context(&context, device), "cuDevicePrimaryCtxRetain");
  Check(set_context(context), "cuCtxSetCurrent");
}

void GpuDriver::Check(int code, const char* call) {
  GRAFT_CHECK(code == 0, absl::StrCat(call, " failed with CUDA error ", code));
}

void* CurrentGpuStream(torch::Device device) {
  const auto* guard = c10::impl::getDeviceGuardImpl(device.type());
  return guard->getStream(device).native_handle();
}

}  // namespace graft::models
