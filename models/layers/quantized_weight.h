// A frozen matrix W (out, in) that is kept in 8 or 4 bits (models/weights/quantize.h) and
// multiplied as W~, what those bits stand for, rounded once to the model's dtype. Used by the
// loader where model.quantize asks for it.
//
// On a CPU W~ exists a slab of a few MiB at a time: rows of it in the forward product, columns in
// the backward one, so that no sum is taken in parts. A GPU has it whole for the length of a
// product.
#pragma once

#include <cstdint>
#include <memory>

#include <torch/types.h>

#include "models/layers/frozen_linear.h"
#include "models/weights/quantize.h"

namespace graft::models {

class GpuKernels;  // models/gpu_kernels.h

// The stored form of a float32 CPU matrix (out, in), as bytes: uint8 (QuantizedShape::bytes()).
// `error`: ||W - W~|| / ||W||. The same bits for any number of threads.
torch::Tensor QuantizeMatrix(const torch::Tensor& weight, Quantization kind, double* error);

// W~ (out, in) in `dtype`, on the device of `stored`: on a GPU by kernels of our own
// (quantized_weight_gpu.inc), else by LibTorch's operators. The same bits.
torch::Tensor DequantizeMatrix(const torch::Tensor& stored, const QuantizedShape& shape,
                               torch::Dtype dtype);

// `stored`: of QuantizeMatrix, on any device, in memory that nobody changes. `dtype`: the model's.
// Packed() of it is `stored`, but with FrozenUse::kPassing nothing.
std::shared_ptr<const FrozenWeight> MakeQuantizedWeight(torch::Tensor stored, QuantizedShape shape,
                                                        torch::Dtype dtype,
                                                        FrozenUse use = FrozenUse::kProducts);

// The kernels, for tests that compile them where there is no GPU.
GpuKernels& QuantizedKernels();

}  // namespace graft::models
