// What a model is, as a checkpoint remembers it, so that a run is not continued on another one
// (reliability.md 1.2 `base`). Used by the trainer.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "models/weights/weight_source.h"
#include "trainer/config.h"
#include "trainer/frozen_watch.h"

namespace graft::trainer {

// Passes everything on to another source and notes what was loaded and what became of it.
class RecordingWeights : public models::WeightSource {
 public:
  // `prefix` stands before the names in the record. `hash_moves`: host memory that moves to a
  // device is hashed for who compares what has arrived there, a reading of all weights.
  RecordingWeights(models::WeightSource& source, std::string prefix, bool hash_moves)
      : source_(source), prefix_(std::move(prefix)), hash_moves_(hash_moves) {}
  bool Has(const std::string& name) const override { return source_.Has(name); }
  absl::StatusOr<torch::Tensor> Load(const std::string& name, const std::vector<int64_t>& shape,
                                     torch::Dtype dtype) override;
  void NoteMatrix(const std::string& name,
                  const std::shared_ptr<const models::FrozenWeight>& matrix) override {
    derived_.matrices.emplace_back(prefix_ + name, matrix);
  }
  void NoteCopy(const std::string& name, const torch::Tensor& copy) override {
    derived_.copies.emplace_back(prefix_ + name, copy);
  }
  // Compared where `to` has the type of `from` and its order in memory.
  void NoteMove(const std::string& name, const torch::Tensor& from,
                const torch::Tensor& to) override;
  const std::vector<WatchedTensor>& loaded() const { return loaded_; }
  const DerivedWeights& derived() const { return derived_; }

 private:
  models::WeightSource& source_;
  const std::string prefix_;
  const bool hash_moves_;
  std::vector<WatchedTensor> loaded_;
  DerivedWeights derived_;
};

// sha256 over the sorted lines `name dtype shape hash64` of all tensors that the stages have loaded
// from model.path, as stored on disk; of a synthetic model over its shape's name and the seed. The
// same for every layout. `loaded`: what this rank has loaded; empty on ranks whose part another
// rank has. All ranks of `world` must call; all get the same result. Reads the tensors in full.
absl::StatusOr<std::string> ModelFingerprint(const Recipe& recipe,
                                             const std::vector<WatchedTensor>& loaded,
                                             comm::Communicator& world);

}  // namespace graft::trainer
