// CUDA graphs: a step's launches recorded once and replayed by one call of the driver, for steps of
// so little work that launching them takes longer than doing it. Through the driver's C interface
// (gpu_driver.h), since graft links nothing of CUDA. Used by decoding with many tenants
// (trainer/tenants) and by training steps (sharding/step_graph.h); one thread.
//
// Memory. A replay writes where the recorded launches wrote, so nothing else may have got that
// memory since. LibTorch's allocator hands a freed block only to the stream that it was first
// allocated on, hence recordings have a stream of their own, on which nothing else ever runs:
// its blocks serve recordings alone. Recordings may share them, because they are replayed on one
// stream and nothing of a replay but its results is read afterwards; results live as long as the
// recording. Blocks also go back to the driver, when memory is short: IsValid then says no.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include <c10/core/Stream.h>
#include <torch/types.h>

#include "absl/status/statusor.h"

namespace graft::models {

// The stream for everything that runs beside recordings: launches on CUDA's default stream cannot
// be recorded. The same for all callers. Kept apart from the recordings' own.
c10::Stream ServingStream(torch::Device gpu);

class GpuGraph {
 public:
  // Runs body() once as it is, on the recordings' stream (what its launches need is then there),
  // and records a second run. It must do the same each time, must read and write memory that stays
  // where it is, and must not wait for the GPU. Error kind bug: it cannot be recorded; work can go
  // on without.
  static absl::StatusOr<std::unique_ptr<GpuGraph>> Record(torch::Device gpu,
                                                          const std::function<void()>& body);
  ~GpuGraph();
  GpuGraph(const GpuGraph&) = delete;
  GpuGraph& operator=(const GpuGraph&) = delete;

  // False once LibTorch has given memory back to the driver, which may be the recording's.
  bool IsValid() const;
  // On the device's current stream.
  void Launch() const;

 private:
  GpuGraph(torch::Device gpu, void* executable, int64_t given_back)
      : gpu_(gpu), executable_(executable), given_back_(given_back) {}
  torch::Device gpu_;
  void* executable_;    // a CUgraphExec
  int64_t given_back_;  // bytes, before it was recorded
};

}  // namespace graft::models
