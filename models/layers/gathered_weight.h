// Frozen matrices whose layer's memory is somewhere else between uses: parallel.shard_weights,
// where each replica of a stage has a share of it (sharding/frozen_shards.h). The stored bytes of
// all matrices of a layer form one piece of memory; a product asks for it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <torch/types.h>

#include "models/layers/frozen_linear.h"
#include "models/weights/quantize.h"

namespace graft::models {

// Keeps the memory of the layers of one rank. Not thread-safe.
class LayerMemory {
 public:
  virtual ~LayerMemory() = default;
  // At load, once for each layer in rising order: takes over its bytes (uint8, on any device).
  // Returns how many of them stay on this rank.
  virtual int64_t Keep(int layer, const torch::Tensor& bytes) = 0;
  // The bytes of `layer` again, valid until another layer is asked for. Every rank that has a share
  // must ask for the same layers in the same order.
  virtual torch::Tensor Use(int layer) = 0;
};

// Puts the matrices of one layer side by side. Used by the loader.
class LayerPacker {
 public:
  LayerPacker(std::shared_ptr<LayerMemory> memory, int layer)
      : memory_(std::move(memory)), layer_(layer) {}
  // A matrix of the model's dtype.
  std::shared_ptr<const FrozenWeight> AddPlain(const torch::Tensor& weight);
  // One in its stored form, which is multiplied in `dtype`.
  std::shared_ptr<const FrozenWeight> AddQuantized(torch::Tensor stored,
                                                   const QuantizedShape& shape, torch::Dtype dtype);
  // Hands the layer over; the weights can be used from now on. Returns the bytes that stay.
  int64_t Finish();

 private:
  // Returns where `bytes` begin.
  int64_t Append(torch::Tensor bytes);

  const std::shared_ptr<LayerMemory> memory_;
  const int layer_;
  std::vector<torch::Tensor> pieces_;
  int64_t size_ = 0;
};

}  // namespace graft::models
