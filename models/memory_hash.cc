#include "models/memory_hash.h"

#include <algorithm>
#include <cstddef>

#include <ATen/ATen.h>

#include "base/hash.h"
#include "models/device.h"
#include "models/gpu_kernels.h"

namespace graft::models {
namespace {

constexpr char kKernelSource[] =
#include "models/memory_hash_gpu.inc"
    ;
constexpr int kThreads = 256;                       // as in the source
constexpr int64_t kBlockBytes = int64_t{4} << 14;   // kBlockWords of the source
constexpr int64_t kPieceBytes = int64_t{16} << 20;  // copied at a time; of whole words

size_t BytesOf(const torch::Tensor& tensor) { return static_cast<size_t>(tensor.numel()); }

uint64_t HashOnHost(const torch::Tensor& tensor) {
  return Hash64(tensor.const_data_ptr(), BytesOf(tensor));
}

// Of a device's memory, without its kernels.
uint64_t HashInPieces(const torch::Tensor& tensor) {
  uint64_t hash = Hash64Length(BytesOf(tensor));
  for (int64_t begin = 0; begin < tensor.numel(); begin += kPieceBytes) {
    const torch::Tensor piece =
        tensor.narrow(0, begin, std::min(kPieceBytes, tensor.numel() - begin)).cpu();
    hash += Hash64Part(piece.const_data_ptr(), BytesOf(piece), static_cast<uint64_t>(begin) / 4);
  }
  return hash;
}

// Of tensors on one GPU; false where the kernel does not run there.
bool HashByKernel(const std::vector<torch::Tensor>& tensors, std::vector<uint64_t>* hashes) {
  const auto count = static_cast<int64_t>(tensors.size());
  const torch::Tensor sums = at::zeros({count}, tensors[0].options().dtype(torch::kInt64));
  GpuKernels::Variant variant;  // the source has no type: that of the sums' bits will do
  if (!HashKernels().Fits({sums.view(torch::kFloat32)}, /*row=*/1, &variant)) return false;
  for (int64_t i = 0; i < count; ++i) {
    const torch::Tensor& tensor = tensors[static_cast<size_t>(i)];
    GpuArguments arguments;
    arguments.Add(tensor).Add(tensor.numel()).Add(sums.narrow(0, i, 1));
    HashKernels().Launch("HashWords", variant, tensor.device(),
                         (tensor.numel() + kBlockBytes - 1) / kBlockBytes, kThreads,
                         arguments.Pointers());
  }
  const torch::Tensor on_host = sums.cpu();
  for (int64_t i = 0; i < count; ++i) {
    hashes->push_back(static_cast<uint64_t>(on_host.const_data_ptr<int64_t>()[i]) +
                      Hash64Length(BytesOf(tensors[static_cast<size_t>(i)])));
  }
  return true;
}

std::vector<uint64_t> HashOnDevice(const std::vector<torch::Tensor>& tensors) {
  std::vector<uint64_t> hashes;
  if (tensors.empty() || HashByKernel(tensors, &hashes)) return hashes;
  for (const torch::Tensor& tensor : tensors) hashes.push_back(HashInPieces(tensor));
  return hashes;
}

}  // namespace

std::vector<uint64_t> MemoryHashes(const std::vector<torch::Tensor>& tensors) {
  std::vector<torch::Tensor> on_device;
  for (const torch::Tensor& tensor : tensors) {
    if (!UsesHostKernels(tensor)) on_device.push_back(tensor);
  }
  const std::vector<uint64_t> of_device = HashOnDevice(on_device);
  std::vector<uint64_t> hashes;
  size_t next = 0;
  for (const torch::Tensor& tensor : tensors)
    hashes.push_back(UsesHostKernels(tensor) ? HashOnHost(tensor) : of_device[next++]);
  return hashes;
}

GpuKernels& HashKernels() {
  static GpuKernels kernels("memory_hash", kKernelSource);
  return kernels;
}

}  // namespace graft::models
