// Weights that method `full` trains and that several parts of the model compute with: embeddings
// tied to a head, T5's bias tables. One part owns each: its copy is in the AdapterSet and is all
// that optimizer, clipping, checkpoint and counts see. The others send it their gradients before
// the update and get its new values after (methods.md 11). Used by the trainer.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "sharding/stage.h"

namespace graft::sharding {

class SharedWeights {
 public:
  // The ranks of the pipeline group must call; both arguments must outlive this.
  SharedWeights(comm::Communicator& pipeline, Stage& stage);
  // Names of the parameters of this rank that CollectGradients adds to.
  std::set<std::string> owned() const;
  // Adds the copies' gradients to the owners', by rank, and sets them to zero. All ranks of the
  // pipeline, between the backward passes and the reduction. Throws kind peer.
  void CollectGradients();
  // Copies the owners' values. All ranks of the pipeline, after whatever changed them.
  void SpreadValues();

 private:
  struct Pair {
    std::string name;
    int owner = 0, copy = 0;  // ranks of the pipeline, which may be one
    torch::Tensor owned;      // the parameter, where this rank owns it
    torch::Tensor copied;     // the leaf, where this rank has a copy
  };
  comm::Communicator& pipeline_;
  std::vector<Pair> pairs_;  // in the same order on all ranks
};

}  // namespace graft::sharding
