// Watches that nothing frozen ever changes: hashes the weights that a rank has loaded and hashes
// them again between steps, a few at a time (reliability.md 4.4). Memory that flips, or a kernel
// that writes where it should not, ends the run instead of spoiling it. Used by the trainer.
//
// It holds no weight alive: what a layer has replaced by a copy of its own is no longer watched.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "absl/status/status.h"

namespace graft::trainer {

// A loaded CPU tensor that may be gone.
class WatchedTensor {
 public:
  WatchedTensor(std::string name, const torch::Tensor& tensor);
  const std::string& name() const { return name_; }
  int64_t bytes() const { return bytes_; }
  // Its hash64, or false when it is gone.
  bool Hash(uint64_t* hash) const;

 private:
  std::string name_;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
  int64_t offset_, bytes_;
};

class FrozenWatch {
 public:
  // Hashes all of `tensors`.
  explicit FrozenWatch(std::vector<WatchedTensor> tensors);
  int64_t bytes() const { return bytes_; }  // watched

  // After a step of `seconds`: as many tensors as keep the pace of all in 30 minutes. Kind bug
  // naming the tensor that has changed. Rank-local.
  absl::Status CheckSome(double seconds);
  // All of them: at the end of a run.
  absl::Status CheckAll() const;

 private:
  struct Entry {
    WatchedTensor tensor;
    uint64_t hash;
  };
  static absl::Status Check(const Entry& entry);
  std::vector<Entry> entries_;
  int64_t bytes_ = 0;
  size_t next_ = 0;
  double due_bytes_ = 0;
};

}  // namespace graft::trainer
