#include "trainer/plan_check.h"

#include "absl/strings/str_cat.h"
#include "base/hash.h"
#include "base/status.h"
#include "comm/agree.h"
#include "sharding/step_plan.h"

namespace graft::trainer {

absl::Status CheckSameOnAllRanks(comm::Communicator& all, const std::string& what,
                                 const std::string& text) {
  if (comm::FirstDifferingRank(all, Sha256Hex(text)) < 0) return absl::OkStatus();
  const std::string first = comm::BroadcastString(all, text, 0);
  absl::Status mine;
  if (text != first) {
    mine = BugError(absl::StrCat(what,
                                 " differs from rank 0's: ", sharding::FirstDifference(text, first),
                                 "; are program and recipe the same on all nodes?"));
  }
  return comm::AgreeOnStatus(all, mine);
}

}  // namespace graft::trainer
