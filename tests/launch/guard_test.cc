#include "launch/guard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <new>
#include <vector>

#include "base/status.h"
#include "tests/testing/run_ranks.h"

namespace graft::launch {
namespace {

using ::testing::HasSubstr;

struct Outcome {
  std::vector<int> codes;
  std::string errors;  // what all ranks wrote to stderr
};

Outcome RunOn(int size, const std::function<absl::Status(comm::Communicator&)>& body) {
  Outcome outcome;
  outcome.codes.resize(static_cast<std::size_t>(size), -1);
  ::testing::internal::CaptureStderr();
  testing::RunRanks(size, [&](comm::Communicator& world) {
    outcome.codes[static_cast<std::size_t>(world.rank())] =
        RunGuarded(world, [&] { return body(world); });
  });
  outcome.errors = ::testing::internal::GetCapturedStderr();
  return outcome;
}

TEST(RunGuarded, SuccessIsZeroAndSilent) {
  const Outcome outcome = RunOn(3, [](comm::Communicator&) { return absl::OkStatus(); });
  EXPECT_EQ(outcome.codes, (std::vector<int>{0, 0, 0}));
  EXPECT_EQ(outcome.errors, "");
}

TEST(RunGuarded, AnAgreedErrorIsPrintedOnce) {
  const Outcome outcome =
      RunOn(3, [](comm::Communicator&) { return RecipeError("a.yaml: optim.lr: found `-1`"); });
  EXPECT_EQ(outcome.codes, (std::vector<int>{78, 78, 78}));
  EXPECT_EQ(outcome.errors, "graft: error: recipe: a.yaml: optim.lr: found `-1`\n");
}

TEST(RunGuarded, OneFailingRankSpeaksForAll) {
  const Outcome outcome = RunOn(3, [](comm::Communicator& world) {
    return world.rank() == 0 ? absl::OkStatus() : IoError("rank " + std::to_string(world.rank()));
  });
  EXPECT_EQ(outcome.codes, (std::vector<int>{74, 74, 74}));
  EXPECT_EQ(outcome.errors, "graft: error: io: rank 1\n");
}

TEST(RunGuarded, AStopOnRequestIsNoError) {
  const Outcome outcome =
      RunOn(2, [](comm::Communicator&) { return MakeError(ErrorKind::kStopped, "at step 7"); });
  EXPECT_EQ(outcome.codes, (std::vector<int>{75, 75}));
  EXPECT_EQ(outcome.errors, "graft: stopped: at step 7\n");
}

TEST(RunGuarded, AnExceptionOnOneRankStopsThePeersThatWaitForIt) {
  const Outcome outcome = RunOn(2, [](comm::Communicator& world) -> absl::Status {
    if (world.rank() == 1) throw StatusError(NumericError("loss is nan at step 3"));
    world.Barrier();
    return absl::OkStatus();
  });
  EXPECT_EQ(outcome.codes[1], 77);
  EXPECT_EQ(outcome.codes[0], 76);
  EXPECT_THAT(outcome.errors, HasSubstr("graft: error: numeric: loss is nan at step 3\n"));
}

TEST(RunGuarded, UnknownExceptionsAreBugs) {
  Outcome outcome = RunOn(1, [](comm::Communicator&) -> absl::Status {
    throw std::runtime_error("first line\nframe #0: somewhere");
  });
  EXPECT_EQ(outcome.codes, std::vector<int>{70});
  EXPECT_EQ(outcome.errors, "graft: error: bug: first line\n");
  outcome = RunOn(1, [](comm::Communicator&) -> absl::Status { throw std::bad_alloc(); });
  EXPECT_EQ(outcome.codes, std::vector<int>{70});
  EXPECT_THAT(outcome.errors, HasSubstr("out of memory"));
  outcome = RunOn(1, [](comm::Communicator&) -> absl::Status { throw 3; });
  EXPECT_EQ(outcome.codes, std::vector<int>{70});
}

TEST(RunGuarded, ControlCharactersDoNotReachTheTerminal) {
  const Outcome outcome =
      RunOn(1, [](comm::Communicator&) { return InputError("name \x1b[2J\nsecond line"); });
  EXPECT_EQ(outcome.errors, "graft: error: input: name ?[2J; second line\n");
}

TEST(RunGuarded, ALogLineSaysWhereAnExceptionWasThrown) {
  ::testing::internal::CaptureStderr();
  testing::RunRanks(1, [&](comm::Communicator& world) {
    RunGuarded(
        world, []() -> absl::Status { throw StatusError(BugError("x")); },
        [] { return std::string("stage 1, step 12"); });
  });
  const std::string errors = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(errors, HasSubstr("stage 1, step 12"));
  EXPECT_THAT(errors, ::testing::EndsWith("graft: error: bug: x\n"));
}

}  // namespace
}  // namespace graft::launch
