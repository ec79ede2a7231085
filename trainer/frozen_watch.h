// Watches that nothing frozen ever changes: hashes the weights that a rank has loaded and hashes
// them again between steps, a few at a time (reliability.md 4.4). Memory that flips, or a kernel
// that writes where it should not, ends the run instead of spoiling it. Used by the trainer.
//
// It holds no weight alive, and watches host memory and a GPU's alike (models/memory_hash.h): there
// the tensors that layers compute with, first compared with what the host had sent. A matrix that a
// layer has packed is watched in its packed form, from the moment of packing. Not watched: tables
// that hold no weights (RoPE's), and the layers that parallel.shard_weights has gathered for use.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "absl/status/status.h"
#include "models/layers/frozen_linear.h"

namespace graft::trainer {

// A loaded tensor that may be gone.
class WatchedTensor {
 public:
  // `sent`: hash64 of the memory that it was copied from, where that has the same bytes.
  WatchedTensor(std::string name, const torch::Tensor& tensor,
                std::optional<uint64_t> sent = std::nullopt);
  const std::string& name() const { return name_; }
  int64_t bytes() const { return bytes_; }
  bool on_gpu() const { return on_gpu_; }
  std::optional<uint64_t> sent() const { return sent_; }
  // Its memory (uint8 (bytes)), which the result keeps; undefined when it is gone.
  torch::Tensor Memory() const;

 private:
  std::string name_;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
  int64_t offset_, bytes_;
  torch::Device device_;
  bool on_gpu_;
  std::optional<uint64_t> sent_;
};

// What layers compute with instead of the tensors that they loaded, by the names of those.
struct DerivedWeights {
  std::vector<WatchedTensor> copies;
  std::vector<std::pair<std::string, std::weak_ptr<const models::FrozenWeight>>> matrices;
  void Append(const DerivedWeights& other);
};

class FrozenWatch {
 public:
  // Hashes all of `loaded` and all copies that are still there.
  explicit FrozenWatch(std::vector<WatchedTensor> loaded, DerivedWeights derived = {});
  // Of the first hashes: kind bug naming a weight that lies in GPU memory as other bytes than the
  // host had sent.
  const absl::Status& arrival() const { return arrival_; }
  int64_t bytes() const;  // watched now

  // After a step of `seconds`: as many tensors as keep the pace of all in 30 minutes. Kind bug
  // naming the tensor that has changed. Waits for the GPU once, and only when something there has
  // its turn. Rank-local.
  absl::Status CheckSome(double seconds);
  // All of them: at the end of a run.
  absl::Status CheckAll() const;

 private:
  struct Entry {
    std::string name;
    std::shared_ptr<const WatchedTensor> tensor;  // null: a matrix
    uint64_t hash = 0;                            // of the tensor when it was loaded
    std::weak_ptr<const models::FrozenWeight> matrix;
  };
  static int64_t BytesOf(const Entry& entry);
  static absl::Status Check(const std::vector<const Entry*>& entries);
  static absl::Status CheckPacked(const Entry& entry);
  static absl::Status CompareWithSent(const Entry& entry);

  absl::Status arrival_;
  std::vector<Entry> entries_;
  size_t next_ = 0;
  double due_bytes_ = 0;
};

}  // namespace graft::trainer
