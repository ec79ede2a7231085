// Both passes of a micro-batch as a CUDA graph (parallel.cuda_graphs): recorded once for each
// layout (lengths, positions, supervised rows) and replayed by one call for later micro-batches of
// the same one. For a part that is the whole model; used by the executor. docs/design.md, "CUDA
// graphs of training steps", says what must hold of a pass that is recorded.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <torch/types.h>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/micro_batch.h"
#include "sharding/stage.h"

namespace graft::sharding {

class RecordedPass {
 public:
  virtual ~RecordedPass() = default;
  // False: neither it nor any other pass that was recorded before may be launched any more.
  virtual bool IsValid() const = 0;
  // Does what was recorded, on the numbers that its memory holds now.
  virtual void Launch() const = 0;
};

// Runs `body` once and records another run of it, under the rules of models::GpuGraph::Record. What
// `body` refers to outlives what is returned.
using PassRecorder =
    std::function<absl::StatusOr<std::unique_ptr<RecordedPass>>(const std::function<void()>& body)>;
PassRecorder GpuPassRecorder(torch::Device gpu);

class MicroBatchGraphs {
 public:
  // `stage` has the whole model and outlives it.
  MicroBatchGraphs(Stage& stage, PassRecorder recorder);
  ~MicroBatchGraphs();

  // A micro-batch forward and backward, in training: its gradients are added to those of the
  // adapter set. Returns the sum of its losses, a float64 scalar of its own. Undefined: nothing was
  // done, the caller launches both passes. That is so for layouts that are seen for the first time
  // (most never come again), beyond kMaxRecordings of them, and for all once a recording has
  // failed, has given other numbers than the launches did, or loses its memory time and again; a
  // warning says so.
  torch::Tensor Run(const models::MicroBatch& batch);

  int64_t replays() const { return replays_; }
  // For the user, at the end: how many micro-batches were replayed, or why none were.
  std::string Summary() const;

  static constexpr size_t kMaxRecordings = 16;  // each holds some MB on a GPU
  static constexpr size_t kMaxSeen = 1024;      // layouts that are remembered without one

 private:
  using Layout = std::vector<int64_t>;
  struct Recording;
  static Layout LayoutOf(const models::MicroBatch& batch);
  // True from the second time on, until it is forgotten; rarely for another one's hash, which
  // records it early.
  bool HasBeenSeen(const Layout& layout);
  torch::Tensor Record(const Layout& layout, const models::MicroBatch& batch);
  torch::Tensor Replay(const models::MicroBatch& batch, Recording& recording);
  // Memory went back to the driver, and all recordings with it.
  void Lose();
  void GiveUp(absl::string_view reason);
  void Forget();  // all recordings

  Stage& stage_;
  PassRecorder recorder_;    // null: given up
  std::set<uint64_t> seen_;  // hashes: a layout has two numbers for each row
  std::map<Layout, std::unique_ptr<Recording>> recordings_;
  int64_t micro_batches_ = 0, records_ = 0, replays_ = 0;
  int times_lost_ = 0;  // recordings, to an allocation that found no memory
};

}  // namespace graft::sharding
