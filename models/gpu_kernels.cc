#include "models/gpu_kernels.h"

#include <dlfcn.h>

#include <bit>
#include <cstring>
#include <optional>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/logging.h"
#include "base/status.h"
#include "models/gpu_driver.h"

namespace graft::models {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr int kMaxAccessBytes = 16;

// A function of a shared library's C interface; the types are those of nvrtc.h, where every
// handle is a pointer and every result an int.
template <typename Function>
bool Find(void* library, const char* name, Function** function) {
  *function = reinterpret_cast<Function*>(::dlsym(library, name));
  return *function != nullptr;
}

struct Nvrtc {
  int (*create)(void** program, const char* source, const char* name, int num_headers,
                const char* const* headers, const char* const* include_names);
  int (*compile)(void* program, int num_options, const char* const* options);
  int (*log_size)(void* program, size_t* size);
  int (*log)(void* program, char* text);
  int (*code_size)(void* program, size_t* size);
  int (*code)(void* program, char* code);
  int (*destroy)(void** program);

  // Null where it is not there.
  static const Nvrtc* Get() {
    static const std::optional<Nvrtc> nvrtc = Load();
    return nvrtc.has_value() ? &*nvrtc : nullptr;
  }

 private:
  static std::optional<Nvrtc> Load() {
    void* const library = OpenLibrary({"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"});
    Nvrtc nvrtc{};
    const bool found = library != nullptr && Find(library, "nvrtcCreateProgram", &nvrtc.create) &&
                       Find(library, "nvrtcCompileProgram", &nvrtc.compile) &&
                       Find(library, "nvrtcGetProgramLogSize", &nvrtc.log_size) &&
                       Find(library, "nvrtcGetProgramLog", &nvrtc.log) &&
                       Find(library, "nvrtcGetCUBINSize", &nvrtc.code_size) &&
                       Find(library, "nvrtcGetCUBIN", &nvrtc.code) &&
                       Find(library, "nvrtcDestroyProgram", &nvrtc.destroy);
    return found ? std::optional(nvrtc) : std::nullopt;
  }
};

std::string ArchitectureOf(const GpuDriver& driver, int device) {
  constexpr int kMajor = 75, kMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
  int major = 0, minor = 0;
  GpuDriver::Check(driver.attribute(&major, kMajor, device), "cuDeviceGetAttribute");
  GpuDriver::Check(driver.attribute(&minor, kMinor, device), "cuDeviceGetAttribute");
  return absl::StrCat("sm_", major, minor);
}

}  // namespace

absl::StatusOr<std::string> GpuKernels::Compile(Variant variant,
                                                const std::string& architecture) const {
  const Nvrtc* const nvrtc = Nvrtc::Get();
  if (nvrtc == nullptr) return BugError("libnvrtc.so is not there");
  void* program = nullptr;
  if (nvrtc->create(&program, source_, name_, 0, nullptr, nullptr) != 0)
    return BugError("nvrtcCreateProgram failed");
  const std::string target = absl::StrCat("--gpu-architecture=", architecture);
  const std::string width = absl::StrCat("-DV=", variant.width);
  std::vector<const char*> options = {target.c_str(), width.c_str(), "--std=c++17"};
  if (variant.bfloat16) options.push_back("-DBF16=1");
  std::string result;
  const bool compiled =
      nvrtc->compile(program, static_cast<int>(options.size()), options.data()) == 0;
  size_t size = 0;
  (compiled ? nvrtc->code_size : nvrtc->log_size)(program, &size);
  result.resize(size);
  (compiled ? nvrtc->code : nvrtc->log)(program, result.data());
  nvrtc->destroy(&program);
  if (compiled) return result;
  return BugError(absl::StrCat(name_, " does not compile for ", architecture, ": ", result));
}

bool GpuKernels::Fits(const std::vector<torch::Tensor>& tensors, int64_t row, Variant* variant) {
  const torch::Tensor& first = tensors.front();
  if (!first.is_cuda()) return false;
  variant->bfloat16 = first.scalar_type() == torch::kBFloat16;
  if (!variant->bfloat16 && first.scalar_type() != torch::kFloat32) return false;
  variant->width = kMaxAccessBytes / static_cast<int>(first.element_size());
  for (const torch::Tensor& tensor : tensors) {
    if (!tensor.is_contiguous() || tensor.scalar_type() != first.scalar_type()) return false;
    const bool aligned = reinterpret_cast<uintptr_t>(tensor.data_ptr()) % kMaxAccessBytes == 0;
    if (!aligned || row % variant->width != 0) variant->width = 1;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  return ModuleOf(*variant, first.device()) != nullptr;
}

void* GpuKernels::ModuleOf(Variant variant, torch::Device device) {
  const auto key = std::pair(variant, static_cast<int>(device.index()));
  const auto found = modules_.find(key);
  if (found != modules_.end()) return found->second;
  void*& module = modules_[key];
  const GpuDriver* const driver = GpuDriver::Get();
  if (driver == nullptr) return module;
  driver->UseDevice(key.second);
  const absl::StatusOr<std::string> code = Compile(variant, ArchitectureOf(*driver, key.second));
  if (!code.ok()) {
    LOG(WARNING) << "slower without GPU kernels of graft's own: " << code.status().message();
    return module;
  }
  GpuDriver::Check(driver->load(&module, code->data()), "cuModuleLoadData");
  return module;
}

void GpuKernels::Launch(const char* kernel, Variant variant, torch::Device device, int64_t blocks,
                        int threads, const std::vector<void*>& arguments) {
  if (blocks == 0) return;
  const GpuDriver& driver = *GpuDriver::Get();
  driver.UseDevice(device.index());
  void* function = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    void* const module = ModuleOf(variant, device);
    void*& known = functions_[{module, kernel}];
    if (known == nullptr)
      GpuDriver::Check(driver.function(&known, module, kernel), "cuModuleGetFunction");
    function = known;
  }
  std::vector<void*> pointers = arguments;
  GpuDriver::Check(driver.launch(function, static_cast<unsigned>(blocks), 1, 1,
                                 static_cast<unsigned>(threads), 1, 1, /*shared_bytes=*/0,
                                 CurrentGpuStream(device), pointers.data(), /*extra=*/nullptr),
                   kernel);
}

GpuArguments& GpuArguments::Add(float number) { return AddBits(std::bit_cast<uint32_t>(number)); }

std::vector<void*> GpuArguments::Pointers() {
  std::vector<void*> pointers;
  for (uint64_t& value : values_) pointers.push_back(&value);
  return pointers;
}

}  // namespace graft::models
