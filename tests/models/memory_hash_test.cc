#include "models/memory_hash.h"

#include <optional>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/hash.h"
#include "models/device.h"
#include "models/gpu_kernels.h"

namespace graft::models {
namespace {

// In host memory, and the way that a device takes without the kernel: in pieces of 16 MiB.
TEST(MemoryHashTest, IsHash64HoweverItIsRead) {
  const torch::Tensor all = at::arange((int64_t{16} << 20) + 1003).to(torch::kUInt8);
  std::vector<torch::Tensor> tensors;
  for (const int64_t size : {int64_t{0}, int64_t{5}, int64_t{1000}, int64_t{16} << 20, all.numel()})
    tensors.push_back(all.narrow(0, 0, size));
  tensors.push_back(all.narrow(0, 3, 70));
  for (const bool as_device : {false, true}) {
    std::optional<DeviceKernelsOnHost> switched;
    if (as_device) switched.emplace();
    const std::vector<uint64_t> hashes = MemoryHashes(tensors);
    ASSERT_EQ(hashes.size(), tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      EXPECT_EQ(hashes[i], Hash64(tensors[i].data_ptr(), tensors[i].nbytes())) << i;
    }
  }
  EXPECT_TRUE(MemoryHashes({}).empty());
}

TEST(MemoryHashTest, TheKernelCompilesWithoutAGpu) {
  for (const char* architecture : {"sm_80", "sm_90", "sm_100"}) {
    const auto code = HashKernels().Compile({}, architecture);
    ASSERT_TRUE(code.ok()) << code.status();
    EXPECT_GT(code->size(), 1000u);
  }
}

}  // namespace
}  // namespace graft::models
