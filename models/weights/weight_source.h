// Where frozen weights come from, by HF name: a model folder (memory-mapped), or synthetic values
// for measurements.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "absl/status/statusor.h"
#include "models/model_config.h"
#include "models/weights/safetensors.h"

namespace graft::models {

class FrozenWeight;

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual bool Has(const std::string& name) const = 0;
  // The tensor as `dtype` in host memory; shares the file's mapping when the stored type already is
  // `dtype` and aligned. Error kind input when absent or of another shape (says both).
  virtual absl::StatusOr<torch::Tensor> Load(const std::string& name,
                                             const std::vector<int64_t>& shape,
                                             torch::Dtype dtype) = 0;
  // Told what is computed with in place of the loaded tensor `name`: a matrix that may be packed
  // later, or a copy of another type. For who watches frozen memory.
  virtual void NoteMatrix(const std::string& /*name*/,
                          const std::shared_ptr<const FrozenWeight>& /*matrix*/) {}
  virtual void NoteCopy(const std::string& /*name*/, const torch::Tensor& /*copy*/) {}
  // Likewise a copy on another device: of `name`, or of what it was quantised to.
  virtual void NoteMove(const std::string& /*name*/, const torch::Tensor& /*from*/,
                        const torch::Tensor& /*to*/) {}
};

// All tensors of an HF model folder. Keeps the mapping alive for the tensors it hands out.
absl::StatusOr<std::unique_ptr<WeightSource>> OpenFolderWeights(const std::string& folder,
                                                                SafetensorsFile::Options options);
// Values drawn from (seed, name) with mean 0 and standard deviation initializer_range, norms 1: for
// `model.shape`. Nearly normal (a sum of four uniform numbers): billions of them take seconds. They
// are made on `device` and lie there: a GPU's generator draws other numbers than the host's.
std::unique_ptr<WeightSource> SyntheticWeights(const ModelConfig& config, uint64_t seed,
                                               torch::Device device = torch::kCPU);

}  // namespace graft::models
