// Frozen weights in GPU memory: hash64 by the kernel, every byte watched, a flipped bit found.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/hash.h"
#include "models/device.h"
#include "models/gpu_kernels.h"
#include "models/memory_hash.h"
#include "tests/gpu/waits.h"
#include "tests/testing/status_matchers.h"
#include "tests/trainer/frozen_bytes.h"
#include "trainer/frozen_watch.h"

namespace graft::trainer {
namespace {

using testing::FailsWith;
using testing::IsOk;
using torch::Tensor;

const torch::Device kGpu(torch::kCUDA, 0);
constexpr double kRound = 1800;

TEST(GpuMemoryHash, TheKernelRunsHere) {
  models::GpuKernels::Variant variant;
  ASSERT_TRUE(models::HashKernels().Fits({at::zeros({2}, kGpu)}, /*row=*/1, &variant));
}

// Every length and address around the borders of accesses and blocks.
TEST(GpuMemoryHash, IsTheHosts) {
  constexpr int64_t kBlock = int64_t{64} << 10;
  const Tensor host = at::randint(256, {(int64_t{40} << 20) + 13}, at::kByte), gpu = host.to(kGpu);
  std::vector<std::pair<int64_t, int64_t>> parts = {{0, host.numel()}, {7, host.numel() - 7}};
  for (int64_t size = 0; size < 70; ++size) parts.emplace_back(0, size);
  for (int64_t begin = 1; begin < 17; ++begin) parts.emplace_back(begin, 83);
  for (const int64_t more : {-17, -1, 0, 1, 16}) parts.emplace_back(0, kBlock + more);
  std::vector<Tensor> on_host, on_gpu;
  for (const auto& [begin, size] : parts) {
    on_host.push_back(host.narrow(0, begin, size));
    on_gpu.push_back(gpu.narrow(0, begin, size));
  }
  const std::vector<uint64_t> want = models::MemoryHashes(on_host);
  EXPECT_EQ(models::MemoryHashes(on_gpu), want);
  EXPECT_EQ(models::MemoryHashes(on_gpu), want);
}

TEST(GpuMemoryHash, OfMoreBytesThanAnIntCounts) {
  constexpr int64_t kBytes = (int64_t{1} << 32) + 5;
  const Tensor gpu = at::zeros({kBytes}, torch::TensorOptions(kGpu).dtype(torch::kUInt8));
  const uint64_t zeros = models::MemoryHashes({gpu})[0];
  gpu[kBytes - 1] = 1;
  const uint64_t hash = models::MemoryHashes({gpu})[0];
  EXPECT_NE(hash, zeros);
  const Tensor host = gpu.cpu();
  EXPECT_EQ(hash, Hash64(host.const_data_ptr(), static_cast<size_t>(kBytes)));
}

TEST(GpuFrozenWatch, EveryFrozenByteIsWatched) {
  for (const char* family : {"llama", "gpt2", "roberta", "t5"}) {
    for (const auto quantize :
         {models::Quantization::kNone, models::Quantization::kInt8, models::Quantization::kNf4}) {
      for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
        const NotedModel model = LoadNoted(family, quantize, dtype, kGpu);
        const int64_t held = model.backbone->frozen_bytes() + DerivedBytes(family);
        EXPECT_EQ(model.bytes, held) << family << " " << static_cast<int>(quantize);
        FrozenWatch watch({}, model.derived);
        EXPECT_EQ(watch.bytes(), held);
        EXPECT_THAT(watch.arrival(), IsOk());
        EXPECT_THAT(watch.CheckAll(), IsOk());
        for (const WatchedTensor& copy : model.derived.copies) {
          Tensor memory = copy.Memory();
          if (!memory.defined()) continue;
          Tensor byte = memory.narrow(0, memory.numel() / 2, 1);
          byte.bitwise_xor_(16);
          EXPECT_THAT(watch.CheckAll(),
                      FailsWith(ErrorKind::kBug,
                                "frozen weight `" + copy.name() + "` has changed in GPU memory"));
          byte.bitwise_xor_(16);
        }
        EXPECT_THAT(watch.CheckAll(), IsOk());
      }
    }
  }
}

TEST(GpuFrozenWatch, SyntheticWeightsMadeOnTheGpuAreWatched) {
  const models::ModelConfig config = models::TinyConfig("llama", 2, 32);
  const auto weights = models::SyntheticWeights(config, 3, kGpu);
  RecordingWeights recorded(*weights, /*prefix=*/"", /*hash_moves=*/true);
  models::BackboneOptions options;
  options.device = kGpu;
  options.dtype = torch::kBFloat16;
  const auto backbone = models::BuildBackbone(config, {0, 2, true, true}, recorded, options);
  ASSERT_TRUE(backbone.ok()) << backbone.status();
  EXPECT_EQ(FrozenWatch(recorded.loaded(), recorded.derived()).bytes(),
            (*backbone)->frozen_bytes());
}

// However many tensors have their turn; and not at all when none has.
TEST(GpuFrozenWatch, AStepWaitsOnceAtMost) {
  std::vector<Tensor> tensors;
  std::vector<WatchedTensor> watched;
  for (int i = 0; i < 20; ++i) {
    tensors.push_back(at::full({1000 + i}, i, torch::TensorOptions(kGpu).dtype(torch::kFloat32)));
    watched.emplace_back("t", tensors.back());
  }
  FrozenWatch watch(watched);
  {
    const testing::NoWaiting no_waiting;
    EXPECT_NO_THROW(EXPECT_THAT(watch.CheckSome(kRound / 1000), IsOk()));
    EXPECT_ANY_THROW((void)watch.CheckSome(kRound));
  }
  const testing::WaitCounter waits;
  EXPECT_THAT(watch.CheckSome(kRound), IsOk());
  EXPECT_EQ(waits.count(), 1);
  EXPECT_THAT(watch.CheckAll(), IsOk());
  EXPECT_EQ(waits.count(), 2);
}

TEST(GpuFrozenWatch, HoldsNothingAlive) {
  Tensor tensor = at::zeros({1000}, kGpu);
  const WatchedTensor watched("t", tensor);
  const FrozenWatch watch({watched});
  EXPECT_THAT(watch.CheckAll(), IsOk());
  tensor.reset();
  EXPECT_FALSE(watched.Memory().defined());
  EXPECT_THAT(watch.CheckAll(), IsOk());
}

}  // namespace
}  // namespace graft::trainer
