#include "comm/communicator.h"

namespace graft::comm {

std::size_t SizeOf(DType type) {
  switch (type) {
    case DType::kUint8:
      return 1;
    case DType::kBFloat16:
      return 2;
    case DType::kInt32:
    case DType::kFloat32:
      return 4;
    case DType::kInt64:
    case DType::kFloat64:
      return 8;
  }
  return 0;
}

}  // namespace graft::comm
