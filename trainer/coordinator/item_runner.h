// What the scoring loop asks of whoever computes: an item becomes its result on one replica.
// Implemented by the scoring worker; called by item_run.h on every rank.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "trainer/coordinator/work_item.h"

namespace graft::trainer {

class ItemRunner {
 public:
  virtual ~ItemRunner() = default;
  // All stages of the replica call it, with the same items in the same order. Must call `progress`
  // after every micro-batch (any stage). The last stage returns the result; what the others return
  // is not looked at. An error (kind numeric: a number that is not finite) means that this item has
  // none while all stages are still in step: it is tried elsewhere, then quarantined. What breaks
  // the replica is thrown.
  virtual absl::StatusOr<std::string> Run(const WorkItem& item,
                                          const std::function<void()>& progress) = 0;
};

}  // namespace graft::trainer
