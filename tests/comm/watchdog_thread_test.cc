#include "comm/watchdog_thread.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "base/status.h"

namespace graft::comm {
namespace {

using ::testing::HasSubstr;

// The test's own clock, read by watchdog threads.
std::atomic<int64_t> g_now{0};
int64_t TestClock() { return g_now.load(); }

// What a watchdog did, in order.
struct Log {
  std::mutex mutex;
  std::vector<std::string> events;
  void Add(const std::string& event) {
    std::lock_guard<std::mutex> lock(mutex);
    events.push_back(event);
  }
  std::vector<std::string> Get() {
    std::lock_guard<std::mutex> lock(mutex);
    return events;
  }
};

struct Rank {
  Rank(int rank, int size, std::shared_ptr<NodeBoard> board) {
    auto pure = std::make_unique<Watchdog>(WatchdogIdentity{rank, size, "node"}, heartbeat,
                                           recorder, std::move(board), rank);
    pure->Stamp(g_now);
    WatchdogActions actions;
    actions.dump = [this](const std::string& reason) { log.Add("dump: " + reason); };
    actions.print = [this](const absl::Status& status) {
      log.Add("print: " + std::string(status.message()));
    };
    actions.exit = [this](int code) { log.Add("exit " + std::to_string(code)); };
    watchdog = std::make_unique<WatchdogThread>(std::move(pure), std::move(actions), &TestClock);
  }
  // True when it comes within a few real seconds.
  bool WaitForExit() {
    for (int i = 0; i < 1000; ++i) {
      const std::vector<std::string> events = log.Get();
      if (!events.empty() && events.back() == "exit 76") return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }
  Heartbeat heartbeat{&TestClock};
  FlightRecorder recorder{&TestClock};
  Log log;
  std::unique_ptr<WatchdogThread> watchdog;
};

// The test's clock runs a hundred times as fast as the wall's.
class FastClock {
 public:
  FastClock()
      : thread_([this] {
          while (!stop_) {
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
            g_now += NanosOf(0.2);
          }
        }) {}
  ~FastClock() {
    stop_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

TEST(WatchdogThread, AHangDumpsPrintsAndExitsInThatOrder) {
  g_now = NanosOf(1);
  Rank rank(0, 1, nullptr);
  rank.heartbeat.set_limits({.step_seconds = 3});
  rank.heartbeat.Enter(Phase::kStep, 5);
  // Small enough steps that the watchdog does not take them for a pause of its own process.
  for (int i = 0; i < 20 && rank.log.Get().empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    g_now += NanosOf(1);
  }
  ASSERT_TRUE(rank.WaitForExit());
  const std::vector<std::string> events = rank.log.Get();
  ASSERT_EQ(events.size(), 3u);
  EXPECT_THAT(events[0], HasSubstr("dump: no end after"));
  EXPECT_THAT(events[1], HasSubstr("print: no end after"));
}

TEST(WatchdogThread, DumpNodeMakesTheOtherRanksWriteTheirs) {
  g_now = NanosOf(1);
  const std::shared_ptr<NodeBoard> board = NodeBoard::InMemory(2);
  Rank first(0, 2, board), second(1, 2, board);
  const auto begin = std::chrono::steady_clock::now();
  first.watchdog->DumpNode("trouble");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(4));
  EXPECT_EQ(first.log.Get(), std::vector<std::string>{"dump: trouble"});
  ASSERT_FALSE(second.log.Get().empty());
  EXPECT_EQ(second.log.Get()[0], "dump: rank 0 raised the alarm");
  // The one that raised it ends the job; the other leaves by itself after a while, without a word.
  EXPECT_TRUE(second.WaitForExit());
  EXPECT_EQ(second.log.Get().size(), 2u);
}

// A healthy rank ends as soon as it is asked to.
TEST(WatchdogThread, EndsAtOnceWhileTheMainThreadWorks) {
  g_now = NanosOf(1);
  const FastClock clock;
  Rank rank(0, 1, NodeBoard::InMemory(1));
  for (int step = 1; step <= 2000; ++step) {
    rank.heartbeat.Enter(Phase::kStep, step);
    rank.recorder.Finish(rank.recorder.Begin({}));
  }
  const auto begin = std::chrono::steady_clock::now();
  rank.watchdog.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
  EXPECT_TRUE(rank.log.Get().empty());
}

}  // namespace
}  // namespace graft::comm
