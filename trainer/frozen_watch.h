// Watches that nothing frozen ever changes: hashes the weights that a rank has loaded and hashes
// them again between steps, a few at a time (reliability.md 4.4). Memory that flips, or a kernel
// that writes where it should not, ends the run instead of spoiling it. Used by the trainer.
//
// It holds no weight alive, and watches host memory only (a GPU's has ECC of its own). A matrix
// that a layer has packed is watched in its packed form, from the moment of packing.
#pragma once

#include <cstdint>
#include <memory>
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
  WatchedTensor(std::string name, const torch::Tensor& tensor);
  const std::string& name() const { return name_; }
  int64_t bytes() const { return bytes_; }
  // Its hash64, or false when it is gone or does not lie in host memory.
  bool Hash(uint64_t* hash) const;

 private:
  std::string name_;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
  int64_t offset_, bytes_;
};

// What layers compute with instead of the tensors that they loaded, by the names of those.
struct DerivedWeights {
  std::vector<WatchedTensor> copies;
  std::vector<std::pair<std::string, std::weak_ptr<const models::FrozenWeight>>> matrices;
  void Append(const DerivedWeights& other);
};

class FrozenWatch {
 public:
  // Hashes all of `loaded` and all copies.
  explicit FrozenWatch(std::vector<WatchedTensor> loaded, DerivedWeights derived = {});
  int64_t bytes() const;  // watched now

  // After a step of `seconds`: as many tensors as keep the pace of all in 30 minutes. Kind bug
  // naming the tensor that has changed. Rank-local.
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
  static absl::Status Check(const Entry& entry);
  static absl::Status Compare(const Entry& entry, const char* what, uint64_t before, uint64_t now);
  void Add(WatchedTensor tensor);

  std::vector<Entry> entries_;
  size_t next_ = 0;
  double due_bytes_ = 0;
};

}  // namespace graft::trainer
