// Where a rank's tensors live: `parallel.device` against the GPUs of its node. Loads LibTorch's
// CUDA half, which graft does not link (docs/design.md), before anything asks LibTorch about CUDA.
// Used by LoadedModel.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "absl/status/statusor.h"
#include "comm/communicator.h"

namespace graft::trainer {

// What a rank's driver shows it. Whether that is all GPUs of the node or the rank's own, as batch
// systems do it, a card has the same name in every process.
struct VisibleGpusOfRank {
  std::string node;
  std::vector<std::string> gpus;
};
// The GPU of each rank, as an index of its own list: the first that no other rank of the node has.
// Ranks that see the fewest choose first, in the order of ranks. -1: none is left.
std::vector<int> AssignGpus(const std::vector<VisibleGpusOfRank>& ranks);

// `wanted`: auto, cpu, cuda. Each rank of a node gets a GPU of its own (AssignGpus); ranks with an
// NCCL_HOSTID of their own count as nodes of their own, which is how several share one GPU in
// tests. auto is a GPU when every rank can have one. Kind recipe where cuda cannot be. All ranks of
// `all` must call; all get the same status.
absl::StatusOr<torch::Device> ChooseDevice(const std::string& wanted, comm::Communicator& all);

// ChooseDevice asks LibTorch for kernels that give the same bits every time; this takes it back,
// for speed (parallel.deterministic: false).
void AllowUnrepeatableKernels();

// Bytes that LibTorch had in use on a GPU at most so far.
int64_t PeakDeviceBytes(torch::Device device);
// Bytes of tensors there at most since the last reset.
int64_t PeakTensorBytes(torch::Device device);
void ResetPeakTensorBytes(torch::Device device);

struct DeviceMemory {
  int64_t held = 0;   // by LibTorch's allocator in this process
  int64_t free = 0;   // that nobody has
  int64_t total = 0;  // of the GPU
};
DeviceMemory DeviceMemoryOf(torch::Device device);
// Kind recipe when a run for which `predicted` bytes are predicted does not fit beside what others
// have: names predicted, held and free memory and the keys that make it smaller.
absl::Status CheckFits(int64_t predicted, const DeviceMemory& now);
// Takes `bytes` more from a GPU in one piece and gives them to LibTorch's allocator, which cuts
// what it is asked for from them. Nothing for bytes <= 0. Kind recipe where the GPU does not have
// them.
absl::Status ReserveDeviceBytes(torch::Device device, int64_t bytes);

}  // namespace graft::trainer
