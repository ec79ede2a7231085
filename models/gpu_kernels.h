// Kernels of graft's own on a GPU: CUDA source inside the program, compiled for the card at hand by
// NVRTC (which comes with LibTorch's CUDA half) when the first one is launched. So nothing needs a
// CUDA toolkit when graft is built, and nothing of CUDA where there is no GPU. Used by
// layers/device_rows.cc, layers/quantized_weight.cc, memory_hash.cc and methods; without NVRTC or
// the driver they go on with LibTorch's operators.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "absl/status/statusor.h"

namespace graft::models {

// One source, compiled for each type of numbers and width of memory access that it is asked for.
// The source sees the type T (float, or bfloat16 as its bits: `unsigned short`, with BF16 defined)
// and V, the numbers that one access moves; pointers to T are then aligned to sizeof(T) * V.
class GpuKernels {
 public:
  struct Variant {
    bool bfloat16 = false;
    int width = 1;  // V
    friend bool operator<(const Variant& a, const Variant& b) {
      return std::pair(a.bfloat16, a.width) < std::pair(b.bfloat16, b.width);
    }
  };

  // `name` for messages; both must outlive the object.
  GpuKernels(const char* name, const char* source) : name_(name), source_(source) {}

  // The widest variant for rows of `row` numbers of these tensors, which are contiguous and of one
  // dtype; false where the kernels cannot run: on another device, for another dtype, or when they
  // did not compile (a warning said so).
  bool Fits(const std::vector<torch::Tensor>& tensors, int64_t row, Variant* variant);

  // On the device's current stream. Each of `arguments` points to one argument's value.
  void Launch(const char* kernel, Variant variant, torch::Device device, int64_t blocks,
              int threads, const std::vector<void*>& arguments);

  // Machine code for an architecture ("sm_90"), without a GPU. Error: what NVRTC says.
  absl::StatusOr<std::string> Compile(Variant variant, const std::string& architecture) const;

 private:
  // The loaded module (a CUmodule), compiled on first use; null when that failed.
  void* ModuleOf(Variant variant, torch::Device device);

  const char* const name_;
  const char* const source_;
  std::mutex mutex_;
  std::map<std::pair<Variant, int>, void*> modules_;  // by variant and device
  std::map<std::pair<void*, std::string>, void*> functions_;
};

// The value of a kernel's argument, kept until the launch: Arguments args; args.Add(x).Add(n);
class GpuArguments {
 public:
  GpuArguments& Add(const torch::Tensor& tensor) {
    return AddBits(reinterpret_cast<uint64_t>(tensor.data_ptr()));
  }
  GpuArguments& Add(int64_t number) { return AddBits(static_cast<uint64_t>(number)); }
  GpuArguments& Add(float number);
  GpuArguments& Add(uint32_t number) { return AddBits(number); }
  std::vector<void*> Pointers();

 private:
  GpuArguments& AddBits(uint64_t bits) {
    values_.push_back(bits);
    return *this;
  }
  std::vector<uint64_t> values_;  // little-endian: the first bytes are the value
};

}  // namespace graft::models
