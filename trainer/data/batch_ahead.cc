#include "trainer/data/batch_ahead.h"

#include <utility>

#include "base/status.h"

namespace graft::trainer {

void BatchAhead::Start(int64_t step, Collation collation) {
  if (task_.active()) ThrowIfError(task_.Take());
  step_ = step;
  task_.Start([this, collation = std::move(collation)] {
    batches_ = collation();
    return absl::OkStatus();
  });
}

std::vector<models::MicroBatch> BatchAhead::Take(int64_t step, const Collation& collation) {
  if (!task_.active()) return collation();
  ThrowIfError(task_.Take());
  return step == step_ ? std::move(batches_) : collation();
}

}  // namespace graft::trainer
