#include "sharding/buffer.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::sharding {
namespace {

comm::DType TypeOf(const torch::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::kUInt8:
      return comm::DType::kUint8;
    case torch::kInt32:
      return comm::DType::kInt32;
    case torch::kInt64:
      return comm::DType::kInt64;
    case torch::kFloat32:
      return comm::DType::kFloat32;
    case torch::kFloat64:
      return comm::DType::kFloat64;
    case torch::kBFloat16:
      return comm::DType::kBFloat16;
    default:
      break;
  }
  ThrowIfError(BugError(absl::StrCat("a tensor of type ", c10::toString(tensor.scalar_type()),
                                     " cannot travel between ranks")));
  return comm::DType::kUint8;
}

}  // namespace

comm::Buffer BufferOf(const torch::Tensor& tensor) {
  GRAFT_CHECK(tensor.is_contiguous(), "only contiguous tensors travel between ranks");
  const int device = tensor.is_cuda() ? static_cast<int>(tensor.get_device()) : -1;
  return {tensor.data_ptr(), static_cast<std::size_t>(tensor.numel()), TypeOf(tensor), device};
}

}  // namespace graft::sharding
