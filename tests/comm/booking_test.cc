#include "comm/booking.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "base/status.h"
#include "comm/flight_recorder.h"
#include "comm/stage_link.h"
#include "tests/testing/run_ranks.h"

namespace graft::comm {
namespace {

using testing::RunRanks;

std::vector<std::string> OpsOf(const FlightRecorder& recorder) {
  std::vector<std::string> ops;
  const std::vector<FlightGroup> groups = recorder.Groups();
  for (const FlightEntry& entry : recorder.Snapshot()) {
    ops.push_back(std::string(entry.op) + " " + groups[static_cast<std::size_t>(entry.group)].name);
    if (entry.finished_ns == 0) ops.back() += " open";
  }
  return ops;
}

TEST(Booking, CollectivesTransfersAndSplitsAreRecorded) {
  RunRanks(2, [](Communicator& world) {
    FlightRecorder recorder;
    world.OpenBook(&recorder, world.name());
    const int other = 1 - world.rank();
    double value = 1;
    world.AllReduce({&value, 1, DType::kFloat64, -1}, ReduceOp::kSum);
    const auto part = world.Split(0, world.rank(), "pipeline");
    StageLink link(*part, 7);
    char out = 'a', in = 0;
    const auto receive = link.StartRecv({&in, 1, DType::kUint8, -1}, other, {3, 5, 0});
    link.StartSend({&out, 1, DType::kUint8, -1}, other, {3, 5, 0})->Wait();
    receive->Wait();
    world.Barrier();
    EXPECT_THAT(OpsOf(recorder), ::testing::ElementsAre(
                                     "AllReduce world", "AllGather world", "Recv world/pipeline:0",
                                     "Recv world/pipeline:0", "Send world/pipeline:0",
                                     "Send world/pipeline:0", "Barrier world"));
    EXPECT_EQ(recorder.Snapshot()[2].micro_batch, 5);
    EXPECT_EQ(recorder.Snapshot()[0].number, 1);
    EXPECT_EQ(recorder.Snapshot().back().number, 3);
    EXPECT_EQ(recorder.waiting(), 0);
    world.OpenBook(nullptr, "");
  });
}

TEST(Booking, AStartedCollectiveHasItsTimes) {
  int64_t now = 0;
  RunRanks(2, [&now](Communicator& world) {
    if (world.rank() > 0) return;
    class Finished : public Request {
      bool Test() override { return true; }
      void Wait() override {}
    };
    static int64_t* clock = nullptr;
    clock = &now;
    FlightRecorder recorder([] { return ++*clock; });
    world.OpenBook(&recorder, "world");
    float value = 0;
    const auto request =
        BookStarted(world, kStartedAllReduce, {&value, 1, DType::kFloat32, -1}, [&] {
          EXPECT_EQ(recorder.waiting(), 1) << "who hangs here waits for the others";
          return std::make_unique<Finished>();
        });
    EXPECT_EQ(recorder.waiting(), 0);
    EXPECT_THAT(OpsOf(recorder), ::testing::ElementsAre("StartAllReduce world open"));
    request->Wait();
    const FlightEntry entry = recorder.Snapshot()[0];
    EXPECT_EQ(entry.number, 1);
    EXPECT_EQ(entry.bytes, 4);
    EXPECT_EQ(entry.enqueued_ns, 1);
    EXPECT_EQ(entry.waited_ns, 3);
    EXPECT_EQ(entry.finished_ns, 4);
    world.OpenBook(nullptr, "");
  });
}

TEST(Booking, WhatNeverEndedStaysOpen) {
  RunRanks(2, [](Communicator& world) {
    FlightRecorder recorder;
    const auto alone = world.Split(0, world.rank(), "part");
    alone->OpenBook(&recorder, "part");
    alone->set_timeout(absl::Milliseconds(50));
    if (world.rank() == 0) {
      EXPECT_THROW(alone->Barrier(), StatusError);
      EXPECT_THAT(OpsOf(recorder), ::testing::ElementsAre("Barrier part open"));
      EXPECT_EQ(recorder.waiting(), 1);
    }
    world.Barrier();
  });
}

}  // namespace
}  // namespace graft::comm
