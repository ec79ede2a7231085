// parallel.shard_weights: the replicas of a stage share its layers' frozen matrices. Each keeps 1/D
// of every layer's bytes and gathers a layer from the others just before it is used, in forward and
// backward passes; while that layer computes, the one that came next the last time is on its way.
// What is frozen is never reduced, never written and not saved. Used by the stage's loader and by
// the executor.
//
// Two layers are whole at a time: the one in use, and the next or the last one. A pass that turns
// around (forward, then backward) finds both there.
//
// Which layers are gathered, and in which order, follows from the order of uses alone. That is the
// same on every replica: equal schedules, equal numbers of micro-batches.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "comm/communicator.h"
#include "models/layers/gathered_weight.h"

namespace graft::sharding {

class FrozenShards : public models::LayerMemory {
 public:
  // `group`: the replicas of this stage; must outlive the shards. Gathered layers lie on `device`;
  // what `group` moves lies in the memory that it reaches: a host group's shards stay on the host.
  FrozenShards(comm::Communicator& group, torch::Device device);

  // Opens the ways to the other replicas' GPUs, while nothing else is under way
  // (comm/transfer_queue.h); nothing to do for a host group. Before the first Use; all ranks of the
  // group must call. Throws kind peer.
  void Connect();

  int64_t Keep(int layer, const torch::Tensor& bytes) override;
  // Blocks until the layer is here. Throws kind peer when a replica is lost. All ranks of the group
  // must call, with the same layers in the same order.
  torch::Tensor Use(int layer) override;
  // Waits for what is still on its way. At the end of a step, so that nothing is in flight between
  // steps. All ranks of the group must call.
  void Settle();

  // This rank's part of each layer, for who watches frozen memory.
  std::vector<std::pair<std::string, torch::Tensor>> shards() const;
  // The largest memory that whole layers take: two of them.
  int64_t gathered_bytes() const;
  // Received so far.
  int64_t received_bytes() const { return received_bytes_; }
  // Waited for replicas so far.
  double blocked_seconds() const { return blocked_seconds_; }

 private:
  static constexpr int kNone = -1;
  // A layer that is whole, or becomes so.
  struct Gathered {
    int layer = kNone;
    torch::Tensor room;   // as large as the largest layer; stays for the next one
    torch::Tensor bytes;  // of the layer: in `room`, or a copy of it on the device
    std::vector<std::unique_ptr<comm::Request>> open;
  };
  bool MovesDeviceMemory() const;
  // In the room of the layer that it replaces.
  void Start(int layer, Gathered* gathered);
  void Finish(Gathered* gathered);
  int64_t LargestLayer() const;
  // What comes behind `current`, which came behind `last`; kNone = unknown.
  int Expected(int last, int current) const;

  comm::Communicator& group_;
  const torch::Device device_;
  const torch::Device travels_on_;             // device_, or the CPU
  std::map<int, torch::Tensor> shards_;        // by layer
  Gathered current_, other_;                   // other_: the next one or the last one
  int before_ = kNone;                         // the layer that was used before current_
  std::map<std::pair<int, int>, int> behind_;  // what came behind two layers the last time
  int64_t received_bytes_ = 0;
  double blocked_seconds_ = 0;
};

}  // namespace graft::sharding
