#include "comm/reducer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/status.h"

namespace graft::comm {
namespace {

using Field = double ControlVector::*;

constexpr Field kSums[] = {
    &ControlVector::loss_sum,
    &ControlVector::trained_tokens,
    &ControlVector::samples,
    &ControlVector::tokens,
    &ControlVector::gradient_square_sum,
    &ControlVector::non_finite,
    &ControlVector::stop_requests,
    &ControlVector::saves_done,
    &ControlVector::saves_failed,
    &ControlVector::compute_seconds,
    &ControlVector::model_flop,
    &ControlVector::hardware_flop,
};
constexpr Field kMaxima[] = {
    &ControlVector::error_code,
    &ControlVector::peak_memory_bytes,
    &ControlVector::communication_seconds,
};
static_assert(sizeof(ControlVector) == (std::size(kSums) + std::size(kMaxima)) * sizeof(double),
              "every field of ControlVector is summed or maximised");

}  // namespace

// One message round for sums and maxima together: everybody gets all vectors and combines them in
// rank order.
ControlVector ReduceControl(Communicator& world, const ControlVector& mine,
                            std::vector<ControlVector>* by_rank) {
  constexpr std::size_t kFields = sizeof(ControlVector) / sizeof(double);
  ControlVector input = mine;
  std::vector<ControlVector> all(world.size());
  world.AllGather({&input, kFields, DType::kFloat64, -1},
                  {all.data(), kFields * all.size(), DType::kFloat64, -1});
  ControlVector total = all[0];
  for (std::size_t r = 1; r < all.size(); ++r) {
    for (const Field field : kSums) total.*field += all[r].*field;
    for (const Field field : kMaxima) total.*field = std::max(total.*field, all[r].*field);
  }
  if (by_rank != nullptr) *by_rank = std::move(all);
  return total;
}

}  // namespace graft::comm
