#include "trainer/chrome_trace.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace graft::trainer {
namespace {

using Json = nlohmann::json;

RankTrace TwoSpans(int rank) {
  RankTrace trace;
  trace.rank = rank;
  trace.label = "data 0, stage 0";
  trace.main = {{"forward 0", "compute", 1'000'000'100, 1'000'002'000, {{"micro_batch", 0}}},
                {"step 1", "step", 1'000'000'100, 1'000'009'000, {}}};
  trace.transfers = {{"send", "send", 1'000'002'000, 1'000'003'500, {{"bytes", 64}}}};
  return trace;
}

TEST(ChromeTraceTest, AFileOfTwoRanksIsJsonOnOneClock) {
  const std::string text =
      TraceFile({TraceEvents(TwoSpans(0), 0), "", TraceEvents(TwoSpans(2), 1'000)}, 2'500);
  const Json file = Json::parse(text);
  EXPECT_EQ(file["displayTimeUnit"], "ms");
  EXPECT_DOUBLE_EQ(file["otherData"]["clock_error_us"], 2.5);
  std::vector<Json> spans, names;
  for (const Json& event : file["traceEvents"]) {
    if (event["ph"] == "X") spans.push_back(event);
    if (event["name"] == "process_name") names.push_back(event["args"]["name"]);
  }
  EXPECT_EQ(names, (std::vector<Json>{"rank 0: data 0, stage 0", "rank 2: data 0, stage 0"}));
  ASSERT_EQ(spans.size(), 4u);
  // The outer span comes first; rank 2's clock shows 1 us more.
  EXPECT_EQ(spans[0]["name"], "step 1");
  EXPECT_EQ(spans[1]["name"], "forward 0");
  EXPECT_EQ(spans[1]["args"]["micro_batch"], 0);
  EXPECT_DOUBLE_EQ(spans[0]["ts"], 1'000'000.1);
  EXPECT_DOUBLE_EQ(spans[0]["dur"], 8.9);
  EXPECT_EQ(spans[2]["pid"], 2);
  EXPECT_DOUBLE_EQ(spans[2]["ts"], 999'999.1);
}

TEST(ChromeTraceTest, ATransferIsAPairOfEventsWithOneId) {
  const Json events = Json::parse("[" + TraceEvents(TwoSpans(3), 0) + "]");
  std::vector<Json> ends;
  for (const Json& event : events) {
    if (event["ph"] == "b" || event["ph"] == "e") ends.push_back(event);
  }
  ASSERT_EQ(ends.size(), 2u);
  // An id of the process: with a global one viewers take the row out of the rank's.
  EXPECT_EQ(ends[0]["id2"]["local"], "0");
  EXPECT_EQ(ends[1]["id2"], ends[0]["id2"]);
  EXPECT_FALSE(ends[0].contains("id"));
  EXPECT_EQ(ends[0]["cat"], "send");
  EXPECT_EQ(ends[0]["args"]["bytes"], 64);
  EXPECT_DOUBLE_EQ(ends[1]["ts"].get<double>() - ends[0]["ts"].get<double>(), 1.5);
}

}  // namespace
}  // namespace graft::trainer
