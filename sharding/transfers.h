// The hidden states and gradients that one stage hands to its neighbours: posts receives ahead,
// keeps sends alive until they are done, counts the seconds spent waiting. A neighbour that is the
// same rank (one stage, several chunks) gets the tensor itself. Used by the executor only; it knows
// no schedule.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <tuple>

#include <torch/types.h>

#include "comm/communicator.h"
#include "comm/stage_link.h"
#include "sharding/plan.h"
#include "sharding/schedule.h"

namespace graft::sharding {

// What an operation takes in: the hidden state of `part` (forward) or the gradient of its output
// (backward), of one micro-batch.
struct FlowKey {
  Pass pass = Pass::kForward;
  int part = 0;  // virtual stage that takes it
  int micro_batch = 0;
  friend bool operator<(const FlowKey& a, const FlowKey& b) {
    return std::tie(a.pass, a.part, a.micro_batch) < std::tie(b.pass, b.part, b.micro_batch);
  }
};

class StageTransfers {
 public:
  // `plan` and `pipeline` (rank in it = stage) must outlive this object.
  StageTransfers(const Plan& plan, int stage, comm::Communicator& pipeline);

  // Opens the ways between this stage and its neighbours' GPUs, while nothing else is under way
  // (comm/transfer_queue.h); nothing to do where the ranks move host memory. Before the first step;
  // all stages must call. Throws kind peer.
  void Connect(torch::Device device);

  // Numbers the transfers of the step that follows; all stages must use the same.
  void BeginStep(int64_t step) { step_ = static_cast<uint64_t>(step); }
  // Posts the receive of a tensor like `buffer`, into it where the ranks move its memory; a GPU's
  // tensors go through host memory otherwise. Nothing to do for a flow that stays on this rank.
  void Post(const FlowKey& key, torch::Tensor buffer);
  // Waits for a posted or handed-over tensor.
  torch::Tensor Take(const FlowKey& key);
  // Sends a contiguous tensor to the stage of key.part, or hands it over. Waits only while as many
  // earlier tensors as kept_ahead() of this flow are still under way.
  void Give(const FlowKey& key, torch::Tensor tensor);
  // Moves open transfers on without blocking.
  void Progress();
  // Waits for all sends.
  void FinishStep();

  double blocked_seconds() const { return blocked_seconds_; }
  size_t kept_ahead() const { return static_cast<size_t>(plan_.stages) + 2; }

 private:
  // The request is destroyed before the tensor that it uses.
  struct Transfer {
    torch::Tensor tensor;                // as it travels
    torch::Device device = torch::kCPU;  // where it is wanted
    std::unique_ptr<comm::Request> request;
  };
  int SourcePart(const FlowKey& key) const;
  comm::TransferId Id(const FlowKey& key) const;
  bool Travels(const torch::Tensor& tensor) const;
  void Wait(Transfer& transfer);

  const Plan& plan_;
  const int stage_;
  comm::Communicator& pipeline_;
  const bool moves_device_memory_;
  comm::StageLink link_;
  uint64_t step_ = 0;
  std::map<FlowKey, Transfer> incoming_;
  std::map<FlowKey, torch::Tensor> handed_over_;
  std::map<uint32_t, std::deque<Transfer>> outgoing_;  // by flow
  double blocked_seconds_ = 0;
};

}  // namespace graft::sharding
