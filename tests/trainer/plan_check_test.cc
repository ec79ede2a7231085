#include "trainer/plan_check.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/testing/run_ranks.h"
#include "tests/testing/status_matchers.h"

namespace graft::trainer {
namespace {

using testing::FailsWith;
using testing::IsOk;
using testing::RunRanks;

TEST(PlanCheck, EqualTextsPass) {
  RunRanks(3, [](comm::Communicator& all) {
    EXPECT_THAT(CheckSameOnAllRanks(all, "the plan", "a\nb\n"), IsOk());
  });
}

TEST(PlanCheck, EveryRankIsToldWhoDiffersAndWhere) {
  RunRanks(3, [](comm::Communicator& all) {
    const std::string text = absl::StrCat("a\nsteps ", all.rank() == 2 ? 11 : 10, "\n");
    EXPECT_THAT(CheckSameOnAllRanks(all, "the plan", text),
                FailsWith(ErrorKind::kBug,
                          "rank 2: the plan differs from rank 0's: line 2: `steps "
                          "11`, the other has `steps 10`"));
  });
}

}  // namespace
}  // namespace graft::trainer
