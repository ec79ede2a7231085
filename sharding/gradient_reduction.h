// Sums a stage's gradients over its data group, piece by piece, and begins with the layers that the
// last backward pass has left while it goes on with those below. Used by the trainer; the executor
// says how far the pass is (layer_watch.h).
//
// The pieces and their order depend on the parameters alone, not on when they start: every rank
// starts the same ones, and a run is bitwise the same however the passes went. Over host memory
// they are done in Finish.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "adapters/adapter_set.h"
#include "comm/communicator.h"

namespace graft::sharding {

class GradientReduction {
 public:
  // Large enough to use a network's bandwidth, small enough that little is left behind the pass.
  static constexpr int64_t kPieceBytes = int64_t{16} << 20;

  // `adapters`, of a model of `num_layers`, and `data_group` must outlive it. `late`: names of
  // parameters whose gradients grow after the backward passes (SharedWeights::owned).
  GradientReduction(const adapters::AdapterSet& adapters, int num_layers,
                    comm::Communicator& data_group, const std::set<std::string>& late = {},
                    int64_t piece_bytes = kPieceBytes);

  // Before the first step, while no rank computes: a GPU group connects at its first reduction, and
  // what that allocates would stop a host whose GPU is at work. All ranks of the data group.
  void Connect();
  // Of the last micro-batch: the gradients of all layers from `layer` on are final. On any thread.
  void LayersDone(int layer);
  // All gradients are final: sums what is left, and returns when every piece is summed. All ranks
  // of the data group must call, once a step. Throws kind peer.
  void Finish();

  size_t pieces() const { return pieces_.size(); }
  size_t started() const { return started_; }  // of this step

 private:
  struct Piece {
    int64_t begin = 0, end = 0;  // of the flat buffer
    int lowest_layer = 0;        // -1: final with the whole pass
    std::unique_ptr<comm::Request> request;
  };
  void Start(Piece* piece);
  void ReduceThroughHost();

  const torch::Tensor gradients_;
  comm::Communicator& group_;
  const bool through_host_;    // gradients on a GPU, a group for host memory
  std::vector<Piece> pieces_;  // in the order in which they start
  size_t started_ = 0;
};

}  // namespace graft::sharding
