#include "sharding/frozen_shards.h"

#include <algorithm>
#include <string_view>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "comm/wait.h"
#include "sharding/buffer.h"

namespace graft::sharding {
namespace {

constexpr int kTag = 1;
constexpr int64_t kAlign = 64;

}  // namespace

FrozenShards::FrozenShards(comm::Communicator& group, torch::Device device)
    : group_(group),
      device_(device),
      travels_on_(MovesDeviceMemory() ? device : torch::Device(torch::kCPU)) {}

bool FrozenShards::MovesDeviceMemory() const {
  return std::string_view(group_.backend()) == "nccl";
}

void FrozenShards::Connect() {
  if (!MovesDeviceMemory()) return;
  Gathered nothing;
  nothing.bytes =
      at::zeros({group_.size(), 1}, torch::TensorOptions(torch::kUInt8).device(device_));
  for (int rank = 0; rank < group_.size(); ++rank) {
    if (rank == group_.rank()) continue;
    const torch::Tensor mine = nothing.bytes[group_.rank()], from = nothing.bytes[rank];
    nothing.open.push_back(group_.StartRecv(BufferOf(from), rank, kTag));
    nothing.open.push_back(group_.StartSend(BufferOf(mine), rank, kTag));
  }
  Finish(&nothing);
}

int64_t FrozenShards::Keep(int layer, const torch::Tensor& bytes) {
  const int64_t ranks = group_.size();
  const int64_t share = (bytes.numel() + ranks * kAlign - 1) / (ranks * kAlign) * kAlign;
  const int64_t begin = std::min(bytes.numel(), share * group_.rank()),
                end = std::min(bytes.numel(), begin + share);
  torch::Tensor shard = at::zeros({share}, bytes.options().device(travels_on_));
  shard.narrow(0, 0, end - begin).copy_(bytes.narrow(0, begin, end - begin));
  GRAFT_CHECK(shards_.emplace(layer, std::move(shard)).second,
              absl::StrCat("layer ", layer, " is kept twice"));
  return share;
}

void FrozenShards::Start(int layer, Gathered* gathered) {
  const auto found = shards_.find(layer);
  GRAFT_CHECK(found != shards_.end(), absl::StrCat("layer ", layer, " is not kept here"));
  const torch::Tensor& mine = found->second;
  const int64_t share = mine.numel();
  if (!gathered->room.defined()) gathered->room = at::empty({LargestLayer()}, mine.options());
  gathered->layer = layer;
  gathered->bytes = gathered->room.narrow(0, 0, share * group_.size());
  const auto part = [&](int rank) { return gathered->bytes.narrow(0, rank * share, share); };
  part(group_.rank()).copy_(mine);
  // Each rank begins with its neighbour, so that not all of them send to the same one.
  for (int i = 1; i < group_.size(); ++i) {
    const int from = (group_.rank() + group_.size() - i) % group_.size();
    gathered->open.push_back(group_.StartRecv(BufferOf(part(from)), from, kTag));
    gathered->open.push_back(
        group_.StartSend(BufferOf(mine), (group_.rank() + i) % group_.size(), kTag));
    received_bytes_ += share;
  }
}

void FrozenShards::Finish(Gathered* gathered) {
  const comm::BlockedTimer timer(&blocked_seconds_);
  for (const auto& request : gathered->open) request->Wait();
  gathered->open.clear();
  if (gathered->layer != kNone) gathered->bytes = gathered->bytes.to(device_);
}

int FrozenShards::Expected(int last, int current) const {
  const auto found = behind_.find({last, current});
  if (found != behind_.end()) return found->second;
  const int next = last == kNone || last < current ? current + 1 : current - 1;
  return shards_.contains(next) ? next : kNone;
}

torch::Tensor FrozenShards::Use(int layer) {
  if (layer == current_.layer) {
    // Messages move while somebody looks at them.
    for (const auto& request : other_.open) request->Test();
    return current_.bytes;
  }
  if (current_.layer != kNone) behind_[{before_, current_.layer}] = layer;
  before_ = current_.layer;
  if (other_.layer != layer) {
    Finish(&other_);  // a wrong guess: the others have sent it
    Start(layer, &other_);
  }
  std::swap(current_, other_);
  Finish(&current_);
  const int next = Expected(before_, layer);
  if (next != kNone && next != layer && next != other_.layer) {
    Start(next, &other_);
  }
  return current_.bytes;
}

void FrozenShards::Settle() { Finish(&other_); }

std::vector<std::pair<std::string, torch::Tensor>> FrozenShards::shards() const {
  std::vector<std::pair<std::string, torch::Tensor>> named;
  for (const auto& [layer, shard] : shards_) {
    named.emplace_back(absl::StrCat("layer ", layer, " (shard)"), shard);
  }
  return named;
}

int64_t FrozenShards::LargestLayer() const {
  int64_t largest = 0;
  for (const auto& [layer, shard] : shards_) {
    largest = std::max(largest, shard.numel() * group_.size());
  }
  return largest;
}

int64_t FrozenShards::gathered_bytes() const {
  return std::min<int64_t>(2, static_cast<int64_t>(shards_.size())) * LargestLayer();
}

}  // namespace graft::sharding
