// Whether gradients are final when a reduction beside the backward pass starts with them: every
// method on every backbone. Used by gradient_reduction_test.cc and, on a GPU, by tests/gpu.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "sharding/gradient_reduction.h"
#include "sharding/layer_watch.h"
#include "tests/adapters/backbone_contract.h"

namespace graft::testing {

// Of two ranks; keeps what it was given and what that was then, and changes nothing.
class RecordingGroup : public comm::Communicator {
 public:
  struct Started {
    torch::Tensor piece, then;
  };

  int rank() const override { return 0; }
  int size() const override { return 2; }
  const std::string& name() const override { return name_; }
  const char* backend() const override { return "nccl"; }  // device memory too
  std::unique_ptr<comm::Request> StartAllReduce(comm::Buffer inout, comm::ReduceOp) override {
    const torch::Device device =
        inout.device < 0 ? torch::Device(torch::kCPU) : torch::Device(torch::kCUDA, inout.device);
    const torch::Tensor piece = at::from_blob(inout.data, {static_cast<int64_t>(inout.count)},
                                              torch::TensorOptions(torch::kFloat32).device(device));
    started.push_back({piece, piece.clone()});
    return std::make_unique<Done>();
  }
  void AllReduce(comm::Buffer, comm::ReduceOp) override {}
  void Broadcast(comm::Buffer, int) override {}
  void AllGather(comm::Buffer, comm::Buffer) override {}
  void Barrier() override {}
  std::unique_ptr<comm::Request> StartSend(comm::Buffer, int, int) override { return {}; }
  std::unique_ptr<comm::Request> StartRecv(comm::Buffer, int, int) override { return {}; }
  std::unique_ptr<Communicator> Split(int, int, const std::string&) override { return {}; }
  void Abort(int) override {}

  std::vector<Started> started;

 private:
  class Done : public comm::Request {
    bool Test() override { return true; }
    void Wait() override {}
  };
  const std::string name_ = "recording";
};

// A pass over `batch`; every parameter is a piece of its own. Returns the pieces that it started.
inline size_t PiecesOfAPass(models::Backbone& model, const adapters::AdapterSet& set,
                            const models::MicroBatch& batch) {
  sharding::LayerWatch watch;
  for (int layer = 0; layer < adapters::kLayers; ++layer) watch.Watch(model.sites(), layer);
  RecordingGroup group;
  sharding::GradientReduction reduction(set, adapters::kLayers, group, {}, /*piece_bytes=*/1);
  models::SiteContext context;
  context.batch = &batch;
  context.training = true;
  const torch::Tensor h = model.Layers(model.Embed(context), context);
  const bool has_head = !models::TaskHeadOf(model.config()).has_dense;
  const torch::Tensor loss = has_head ? model.LossSum(h, context) : h.square().sum();
  if (loss.requires_grad()) {
    const sharding::LayerWatch::Listener listener = [&](int layer) { reduction.LayersDone(layer); };
    const sharding::LayerWatch::Scope listen(watch, &listener);
    torch::autograd::backward({loss}, {});
  }
  const size_t started = reduction.started();
  EXPECT_EQ(started, group.started.size());
  reduction.Finish();
  EXPECT_EQ(group.started.size(), reduction.pieces());
  int64_t numbers = 0;
  for (size_t i = 0; i < group.started.size(); ++i) {
    const RecordingGroup::Started& piece = group.started[i];
    EXPECT_TRUE(at::equal(piece.piece, piece.then)) << "piece " << i << " grew afterwards";
    numbers += piece.piece.numel();
  }
  EXPECT_EQ(numbers, set.size());
  return started;
}

class FinalGradients : public adapters::BackboneContract {
 protected:
  models::MicroBatch Batch() const {
    models::MicroBatch batch = Samples({0, 1, 2});
    batch.target_rows = {1, 2, 5};
    batch.target_ids = {7, 0, 100};
    return batch;
  }

  // A pass of `model`, and how many pieces it started.
  void ExpectFinal(bool recompute) {
    const Adapted adapted = Adapt(/*trained=*/true, recompute);
    const size_t started = PiecesOfAPass(*adapted.model, *adapted.set, Batch());
    // Methods whose parameters lie in several layers, not in front of them.
    const bool in_layers = row().method != "none" && method_->virtual_rows() == 0;
    EXPECT_EQ(started > 0, in_layers);
  }
};

}  // namespace graft::testing
