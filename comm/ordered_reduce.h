// Element-wise reduction of the contributions of several ranks, always in rank order, so that the
// result does not depend on who adds or on when a message arrived. Plain memory; used by the host
// collectives.
#pragma once

#include <cstddef>
#include <vector>

#include "comm/communicator.h"

namespace graft::comm {

// True for kFloat32, kFloat64 and kInt64.
bool IsReducible(DType type);
const char* NameOf(DType type);

// out = parts[0] op parts[1] op ... (left to right), `count` elements each. parts[rank] is `out`
// itself; the other parts are scratch and may be overwritten. kMax and kMin return NaN when any
// part has one. `type` must be reducible.
void ReduceInRankOrder(DType type, ReduceOp op, std::size_t count, void* out,
                       const std::vector<void*>& parts);

}  // namespace graft::comm
