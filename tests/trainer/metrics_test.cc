#include "trainer/metrics.h"

#include <fstream>
#include <limits>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/status.h"
#include "trainer/progress.h"

namespace graft::trainer {
namespace {

using Json = nlohmann::ordered_json;

class MetricsTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "metrics_" +
              testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_TRUE(RemoveTree(folder_).ok());
    ASSERT_TRUE(MakeDirs(folder_).ok());
    path_ = JoinPath(folder_, "metrics.jsonl");
  }
  std::vector<Json> Lines() const {
    std::ifstream in(path_);
    std::vector<Json> lines;
    for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
    return lines;
  }
  static std::vector<std::string> Keys(const Json& json) {
    std::vector<std::string> keys;
    for (const auto& item : json.items()) keys.push_back(item.key());
    return keys;
  }
  std::string folder_, path_;
};

TEST_F(MetricsTest, RecordsCarryTheDocumentedFieldsKindFirst) {
  {
    auto log = MetricsLog::Open(path_, 0).value();
    RunRecord run;
    run.versions = {{"graft", "0.1.0"}};
    run.stages = {{0, 0, 2, 100, 0, 130}, {1, 2, 4, 120, 0, 150}};
    ASSERT_TRUE(log->Write(run).ok());
    TrainRecord train;
    train.step = 1;
    train.loss = 0.1;
    train.stage_peak_memory_bytes = {30, 40};
    ASSERT_TRUE(log->Write(train).ok());
    ASSERT_TRUE(log->Write(EvalRecord{1, 2.5, {{"perplexity", 12.0}}}).ok());
    ASSERT_TRUE(log->Write(CheckpointRecord{1, 0.5, 77}).ok());
    ASSERT_TRUE(log->Write(ResumeRecord{1, "step-00000001", {}}).ok());
  }
  const std::vector<Json> lines = Lines();
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_THAT(Keys(lines[0]),
              testing::ElementsAre("kind", "schema", "versions", "layout", "trainable_parameters",
                                   "adapter_parameters", "head_parameters", "encoder_parameters",
                                   "total_parameters", "predicted_memory_bytes", "stages"));
  EXPECT_EQ(lines[0]["stages"][1]["end_layer"], 4);
  EXPECT_EQ(lines[0]["stages"][1]["predicted_memory_bytes"], 150);
  EXPECT_THAT(Keys(lines[1]),
              testing::ElementsAre("kind", "step", "loss", "grad_norm", "lr", "samples", "tokens",
                                   "trained_tokens", "step_seconds", "tokens_per_second",
                                   "peak_memory_bytes", "bubble_fraction", "communication_seconds",
                                   "model_flops_per_second", "hardware_flops_per_second",
                                   "stage_peak_memory_bytes"));
  EXPECT_EQ(lines[1]["loss"].get<double>(), 0.1);
  EXPECT_THAT(Keys(lines[2]), testing::ElementsAre("kind", "step", "loss", "perplexity"));
  EXPECT_THAT(Keys(lines[3]),
              testing::ElementsAre("kind", "step", "seconds", "bytes", "stall_seconds"));
  EXPECT_THAT(Keys(lines[4]), testing::ElementsAre("kind", "step", "from", "layout"));
}

TEST_F(MetricsTest, SharesOfThePeakStandThereOnlyWhenItIsKnown) {
  TrainRecord train;
  train.step = 1;
  train.model_flops_per_second = 3e12;
  train.hardware_flops_per_second = 4e12;
  train.peak_flops = 8e12;
  EXPECT_THAT(ProgressText(train, 2, 0), testing::HasSubstr("MFU 37.5 %"));
  ASSERT_TRUE(MetricsLog::Open(path_, 0).value()->Write(train).ok());
  const std::vector<Json> lines = Lines();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0]["peft_mfu"], 0.375);
  EXPECT_EQ(lines[0]["hardware_utilization"], 0.5);
}

TEST_F(MetricsTest, OpeningCutsLaterStepsAndATornLine) {
  std::ofstream(path_)
      << "{\"kind\":\"run\"}\n{\"kind\":\"train\",\"step\":1}\n{\"kind\":\"train\",\"step\":2}\n"
         "{\"kind\":\"checkpoint\",\"step\":2}\n{\"kind\":\"train\",\"step\":3}\n{\"kind\":"
         "\"train\",\"st";
  auto log = MetricsLog::Open(path_, 2).value();
  TrainRecord train;
  train.step = 3;
  ASSERT_TRUE(log->Write(train).ok());
  std::vector<std::string> seen;
  for (const Json& line : Lines())
    seen.push_back(line["kind"].get<std::string>() + line.value("step", Json("-")).dump());
  EXPECT_THAT(seen, testing::ElementsAre("run\"-\"", "train1", "train2", "checkpoint2", "train3"));
}

TEST_F(MetricsTest, NonFiniteNumbersBecomeNull) {
  TrainRecord train;
  train.loss = std::numeric_limits<double>::quiet_NaN();
  train.skipped = true;
  ASSERT_TRUE(MetricsLog::Open(path_, 0).value()->Write(train).ok());
  EXPECT_TRUE(Lines()[0]["loss"].is_null());
  EXPECT_EQ(Lines()[0]["skipped"], true);
}

TEST_F(MetricsTest, UnwritableFolderIsAnIoError) {
  const absl::Status status = MetricsLog::Open("/proc/metrics.jsonl", 0).status();
  EXPECT_EQ(KindOf(status), ErrorKind::kIo) << status;
}

TEST(ProgressTest, LineShowsStepLossSpeedAndEta) {
  TrainRecord record;
  record.step = 12;
  record.loss = 1.23456;
  record.tokens_per_second = 345.4;
  EXPECT_EQ(ProgressText(record, 200, 3723), "step 12/200  loss 1.2346  345 tok/s  ETA 1:02:03");
  EXPECT_EQ(ProgressText(record, 200, 61), "step 12/200  loss 1.2346  345 tok/s  ETA 1:01");
}

TEST(ProgressTest, TerminalRedrawsOneLine) {
  TrainRecord record;
  record.step = 1;
  testing::internal::CaptureStderr();
  {
    Progress progress(2, 1, /*terminal=*/true);
    progress.Show(record);
    record.step = 2;
    progress.Show(record);
  }
  const std::string shown = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(shown.begin(), shown.end(), '\n'), 1);
  EXPECT_EQ(std::count(shown.begin(), shown.end(), '\r'), 2);
}

}  // namespace
}  // namespace graft::trainer
