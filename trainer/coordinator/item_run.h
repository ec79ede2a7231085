// Runs a list of work items over all replicas of a job and hands back every result: the coordinator
// on rank 0's main thread, a worker on stage 0 of each replica, and the way between them over the
// world's ranks (reliability.md 5). No thread, no socket: whoever computes calls `progress` between
// micro-batches, and that is when messages are read. Used by `graft score`.
//
// Stage 0 of a replica asks for items and passes their numbers on to the next stage; the last stage
// sends results back to it. It may begin as many items as there are stages before the first
// one's result is back, so that a pipeline stays full from one item to the next.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/world.h"
#include "trainer/coordinator/coordinator.h"
#include "trainer/coordinator/item_runner.h"
#include "trainer/coordinator/journal.h"
#include "trainer/coordinator/work_item.h"

namespace graft::trainer {

struct ItemRunReport {
  std::vector<std::string> results;  // rank 0: in the order of the items; other ranks: empty
  ItemProgress progress;             // rank 0
  double seconds = 0;
  // This rank's time with messages, coordinator and journal between its own micro-batches, and
  // its time without an item while others worked.
  double coordinator_seconds = 0;
  double waiting_seconds = 0;
};

// "scored 123/640 items (40 from the journal)  4 replicas  ETA 12:05".
std::string ProgressText(const ItemProgress& progress);

// `items` and `run_key` must be the same on all ranks; `journal` is open on rank 0 and null
// elsewhere. All ranks must call; all get the same status: kind stopped after a stop request (what
// was done is in the journal), numeric or bug when an item is quarantined or two results differ, io
// when the journal cannot be written. Throws what the runner throws, and kind peer.
absl::StatusOr<ItemRunReport> RunWorkItems(comm::World& world, const comm::RankGrid& grid,
                                           const std::string& run_key,
                                           const std::vector<WorkItem>& items, Journal* journal,
                                           ItemRunner& runner,
                                           const CoordinatorOptions& options = {});

}  // namespace graft::trainer
