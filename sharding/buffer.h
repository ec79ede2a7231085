// A tensor's memory as comm/ sees it. The only place where LibTorch tensors become plain buffers.
#pragma once

#include <torch/types.h>

#include "comm/communicator.h"

namespace graft::sharding {

// `tensor` must be contiguous and of a type that travels (bug error else); it owns the memory.
comm::Buffer BufferOf(const torch::Tensor& tensor);

}  // namespace graft::sharding
