#include "comm/flight_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/status.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft::comm {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FailsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::TempFolder;

FlightOperation Collective(int64_t number, const std::string& op, int64_t bytes,
                           int64_t finished_us) {
  return {.sequence = number,
          .group = 0,
          .number = number,
          .op = op,
          .type = "float64",
          .peer = -1,
          .bytes = bytes,
          .step = 12,
          .micro_batch = -1,
          .enqueued_us = 1'000'000 * number,
          .waited_us = 1'000'000 * number,
          .finished_us = finished_us};
}

FlightDump Dump(int rank, int size, std::vector<FlightOperation> operations) {
  FlightDump dump;
  dump.rank = rank;
  dump.size = size;
  dump.host = "node";
  dump.reason = "test";
  dump.phase = "step";
  dump.step = 12;
  dump.now_us = 30'000'000;
  dump.groups = {{"world", rank, size}};
  if (!operations.empty() && operations.back().finished_us == 0)
    dump.waiting = operations.back().sequence;
  dump.operations = std::move(operations);
  return dump;
}

TEST(FlightReport, NamesTheMissingRankAndWhatTheOthersWaitIn) {
  const TempFolder folder;
  for (const int rank : {0, 1, 3}) {
    ASSERT_TRUE(
        WriteFlightDump(folder.path(), Dump(rank, 4, {Collective(1, "AllReduce", 104, 0)})).ok());
  }
  EXPECT_TRUE(IsFlightFolder(folder.path()));
  const auto text = DescribeFlight(folder.path());
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, AllOf(HasSubstr("3 of 4 left a dump"), HasSubstr("rank 2 is the first of 1"),
                           HasSubstr("waits 29.0 s in AllReduce 1 of world (step 12, 104 bytes "
                                     "float64)"),
                           HasSubstr("differs           nothing"), Not(HasSubstr("behind"))));
}

TEST(FlightReport, FindsTheFirstOperationThatDiffers) {
  const FlightVerdict verdict =
      Judge({Dump(0, 2, {Collective(1, "AllReduce", 8, 5), Collective(2, "AllReduce", 104, 0)}),
             Dump(1, 2, {Collective(1, "AllReduce", 8, 5), Collective(2, "Barrier", 0, 0)})});
  EXPECT_TRUE(verdict.missing.empty());
  EXPECT_EQ(verdict.difference,
            "operation 2 of world: rank 0 AllReduce of 104 bytes float64, rank 1 Barrier");
  EXPECT_EQ(verdict.behind, -1);
}

TEST(FlightReport, FindsTheRankThatIsBehind) {
  const FlightVerdict verdict =
      Judge({Dump(0, 2, {Collective(1, "AllReduce", 8, 5), Collective(2, "AllReduce", 104, 0)}),
             Dump(1, 2, {Collective(1, "AllReduce", 8, 5)})});
  EXPECT_EQ(verdict.behind, 1);
  EXPECT_EQ(verdict.behind_text,
            "rank 1 has begun 1 collectives of world, rank 0 waits in AllReduce 2 of world");
  EXPECT_EQ(verdict.difference, "");
}

// Rings that hold other parts of a long run are compared where they overlap.
TEST(FlightReport, ComparesTheCommonPartOfTwoRings) {
  std::vector<FlightOperation> early, late;
  for (int64_t n = 1; n <= 60; ++n) early.push_back(Collective(n, "AllReduce", 8, 5));
  for (int64_t n = 40; n <= 100; ++n) late.push_back(Collective(n, "AllReduce", 8, 5));
  EXPECT_EQ(Judge({Dump(0, 2, early), Dump(1, 2, late)}).difference, "");
  late[10].bytes = 16;
  EXPECT_THAT(Judge({Dump(0, 2, early), Dump(1, 2, late)}).difference,
              HasSubstr("operation 50 of world"));
}

TEST(FlightDump, ReturnsExactlyAndStaysBelowAMebibyte) {
  const TempFolder folder;
  FlightRecorder recorder;
  recorder.AddGroup("world/pipeline:1", 0, 2);
  for (int i = 0; i < FlightRecorder::kEntries + 5; ++i) {
    FlightEntry entry;
    entry.group = 0;
    entry.op = i % 2 == 0 ? "Send" : "Recv";
    entry.type = "bfloat16";
    entry.peer = 1;
    entry.bytes = int64_t{1} << 40;
    recorder.set_step(1'000'000'000 + i);
    recorder.Finish(recorder.Begin(entry));
  }
  FlightDump dump = Dump(0, 2, {});
  TakeRecorder(recorder, &dump);
  ASSERT_TRUE(WriteFlightDump(folder.path(), dump).ok());
  EXPECT_LT(folder.Read("rank-00000.json").size(), std::size_t{1} << 20);
  const auto read = ReadFlightDump(folder.Path("rank-00000.json"));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(ToJson(*read), ToJson(dump));
  EXPECT_EQ(read->operations.size(), static_cast<std::size_t>(FlightRecorder::kEntries));
  EXPECT_THAT(DescribeOperation(read->operations.back(), read->groups),
              ::testing::AnyOf(HasSubstr("Send to rank 1 of world/pipeline:1"),
                               HasSubstr("Recv from rank 1 of world/pipeline:1")));
}

TEST(FlightDump, DamagedFilesAreRefused) {
  const TempFolder folder;
  const std::string good = ToJson(Dump(0, 2, {Collective(1, "AllReduce", 8, 5)}));
  const auto read = [&](const std::string& from, const std::string& to) {
    return ReadFlightDump(folder.Write("rank-00000.json", absl::StrReplaceAll(good, {{from, to}})));
  };
  EXPECT_TRUE(read("none", "none").ok());
  EXPECT_THAT(read("graft-flight", "other"), FailsWith(ErrorKind::kInput, "format"));
  EXPECT_THAT(read("\"version\":1", "\"version\":2"), FailsWith(ErrorKind::kInput, "version"));
  EXPECT_THAT(read("\"rank\":0,\"reason\"", "\"rank\":9,\"reason\""),
              FailsWith(ErrorKind::kInput, "rank"));
  EXPECT_THAT(read("[[1,0,", "[[1,7,"), FailsWith(ErrorKind::kInput, "communicator"));
  EXPECT_THAT(read("[[1,", "[["), FailsWith(ErrorKind::kInput, "operations[0]"));
  EXPECT_THAT(read("\"AllReduce\"", "17"), FailsWith(ErrorKind::kInput, "op"));
}

TEST(FlightDump, FileNames) {
  int rank = -1;
  EXPECT_EQ(FlightFileName(7), "rank-00007.json");
  EXPECT_TRUE(ParseFlightFileName("rank-00123.json", &rank));
  EXPECT_EQ(rank, 123);
  for (const char* name :
       {"rank-0123.json", "rank-0012x.json", "rank-00012.txt", "rank--0012.json"})
    EXPECT_FALSE(ParseFlightFileName(name, nullptr)) << name;
}

TEST(FlightReport, FilesOfAnEarlierStartAreLeftOut) {
  const TempFolder folder;
  FlightDump old = Dump(3, 4, {}), heard = Dump(0, 2, {}), raised = Dump(1, 2, {});
  old.start = "a";
  old.written_s = 100;
  heard.start = raised.start = "b";
  heard.written_s = raised.written_s = 200;
  heard.reason = "rank 1 raised the alarm";
  raised.reason = "no end";
  for (const FlightDump& dump : {old, heard, raised})
    ASSERT_TRUE(WriteFlightDump(folder.path(), dump).ok());
  const auto text = DescribeFlight(folder.path());
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, AllOf(HasSubstr("2 of 2 left a dump"), HasSubstr("left out          1 files"),
                           HasSubstr("written because   no end"), Not(HasSubstr("missing"))));
}

}  // namespace
}  // namespace graft::comm
