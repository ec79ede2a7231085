#include "comm/flight_recorder.h"

#include <gtest/gtest.h>

#include <thread>

namespace graft::comm {
namespace {

int64_t g_now = 0;
int64_t TestClock() { return g_now; }

FlightEntry Entry(int group, const char* op, int64_t number, int64_t bytes) {
  FlightEntry entry;
  entry.group = group;
  entry.op = op;
  entry.number = number;
  entry.bytes = bytes;
  entry.type = "float32";
  return entry;
}

TEST(FlightRecorder, KeepsWhatWasBooked) {
  FlightRecorder recorder(&TestClock);
  const int group = recorder.AddGroup("world", 1, 4);
  recorder.set_step(7);
  recorder.set_micro_batch(2);
  g_now = 100;
  const int64_t sequence = recorder.Begin(Entry(group, "AllReduce", 1, 16));
  g_now = 110;
  recorder.Wait(sequence);
  EXPECT_EQ(recorder.waiting(), sequence);
  g_now = 150;
  recorder.Finish(sequence);
  EXPECT_EQ(recorder.waiting(), 0);

  const std::vector<FlightEntry> entries = recorder.Snapshot();
  ASSERT_EQ(entries.size(), 1u);
  EXPECT_STREQ(entries[0].op, "AllReduce");
  EXPECT_EQ(entries[0].step, 7);
  EXPECT_EQ(entries[0].micro_batch, 2);
  EXPECT_EQ(entries[0].enqueued_ns, 100);
  EXPECT_EQ(entries[0].waited_ns, 110);
  EXPECT_EQ(entries[0].finished_ns, 150);
  ASSERT_EQ(recorder.Groups().size(), 1u);
  EXPECT_EQ(recorder.Groups()[0].name, "world");
  EXPECT_EQ(recorder.Groups()[0].size, 4);
}

TEST(FlightRecorder, TheRingHoldsTheLast4096) {
  FlightRecorder recorder(&TestClock);
  for (int i = 1; i <= FlightRecorder::kEntries + 10; ++i) recorder.Begin(Entry(0, "Send", 0, i));
  const std::vector<FlightEntry> entries = recorder.Snapshot();
  ASSERT_EQ(entries.size(), static_cast<std::size_t>(FlightRecorder::kEntries));
  EXPECT_EQ(entries.front().bytes, 11);
  EXPECT_EQ(entries.back().bytes, FlightRecorder::kEntries + 10);
  recorder.Finish(3);  // long gone: changes nothing
  FlightEntry entry;
  EXPECT_FALSE(recorder.Read(3, &entry));
}

TEST(FlightRecorder, GroupsBeyondTheTableAreNamedNot) {
  FlightRecorder recorder(&TestClock);
  for (int i = 0; i < FlightRecorder::kGroups; ++i) EXPECT_EQ(recorder.AddGroup("g", 0, 1), i);
  EXPECT_EQ(recorder.AddGroup("g", 0, 1), -1);
  const std::string longest(200, 'x');
  FlightRecorder other(&TestClock);
  other.AddGroup(longest, 0, 1);
  EXPECT_EQ(other.Groups()[0].name, longest.substr(0, 63));
}

// A reader never sees half of one entry and half of another.
TEST(FlightRecorder, ReadsWhileTheMainThreadWrites) {
  FlightRecorder recorder;
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop) {
      for (const FlightEntry& entry : recorder.Snapshot()) {
        ASSERT_EQ(entry.bytes, entry.sequence * 3);
        ASSERT_EQ(entry.peer, static_cast<int>(entry.sequence % 7));
      }
    }
  });
  for (int64_t i = 1; i <= 30'000; ++i) {
    FlightEntry entry = Entry(0, "Send", 0, i * 3);
    entry.peer = static_cast<int>(i % 7);
    recorder.Finish(recorder.Begin(entry));
  }
  stop = true;
  reader.join();
}

}  // namespace
}  // namespace graft::comm
