#include "comm/ordered_reduce.h"

#include <cstdint>
#include <cstring>

#include "base/status.h"

namespace graft::comm {
namespace {

struct Sum {
  static constexpr bool kCommutes = true;
  template <typename T>
  static T Apply(T a, T b) {
    return a + b;
  }
};
// Written so that a NaN on either side wins: a hidden NaN would let one rank act on a number that
// another rank does not have. Of +0 and -0 the left one stays, so these do not commute bit for bit.
struct Max {
  static constexpr bool kCommutes = false;
  template <typename T>
  static T Apply(T a, T b) {
    return (a >= b || a != a) ? a : b;
  }
};
struct Min {
  static constexpr bool kCommutes = false;
  template <typename T>
  static T Apply(T a, T b) {
    return (a <= b || a != a) ? a : b;
  }
};

template <typename T, typename Op>
void Accumulate(T* __restrict acc, const T* __restrict in, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) acc[i] = Op::Apply(acc[i], in[i]);
}

template <typename T, typename Op>
void Reduce(std::size_t count, void* out, const std::vector<void*>& parts) {
  // Rank 0 reduces in place; so does rank 1 where swapping the first two parts changes no bit. The
  // others accumulate in the scratch of part 0.
  const bool in_place = parts[0] == out || (Op::kCommutes && parts.size() > 1 && parts[1] == out);
  T* acc = static_cast<T*>(in_place ? out : parts[0]);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i] != acc) Accumulate<T, Op>(acc, static_cast<const T*>(parts[i]), count);
  }
  if (!in_place) std::memcpy(out, acc, count * sizeof(T));
}

template <typename T>
void ReduceTyped(ReduceOp op, std::size_t count, void* out, const std::vector<void*>& parts) {
  switch (op) {
    case ReduceOp::kSum:
      return Reduce<T, Sum>(count, out, parts);
    case ReduceOp::kMax:
      return Reduce<T, Max>(count, out, parts);
    case ReduceOp::kMin:
      return Reduce<T, Min>(count, out, parts);
  }
}

}  // namespace

bool IsReducible(DType type) {
  return type == DType::kFloat32 || type == DType::kFloat64 || type == DType::kInt64;
}

const char* NameOf(DType type) {
  switch (type) {
    case DType::kUint8:
      return "uint8";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kBFloat16:
      return "bfloat16";
  }
  return "unknown";
}

void ReduceInRankOrder(DType type, ReduceOp op, std::size_t count, void* out,
                       const std::vector<void*>& parts) {
  GRAFT_CHECK(IsReducible(type), std::string("cannot reduce ") + NameOf(type));
  if (type == DType::kFloat32) return ReduceTyped<float>(op, count, out, parts);
  if (type == DType::kFloat64) return ReduceTyped<double>(op, count, out, parts);
  ReduceTyped<int64_t>(op, count, out, parts);
}

}  // namespace graft::comm
