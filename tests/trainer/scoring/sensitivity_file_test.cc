#include "trainer/scoring/sensitivity_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "base/hash.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft::trainer {
namespace {

using models::Role;
using testing::FailsWith;

// A folder adapter/ with a tensor file and the sensitivity beside it.
struct TrainedRun {
  TrainedRun() {
    EXPECT_TRUE(MakeDirs(adapter).ok());
    Write(JoinPath(adapter, "adapter_model.safetensors"), "tensors");
    sensitivity.adapter_sha256 = Sha256Hex("tensors");
    sensitivity.modules = {{{0, Role::kAttnQ}, 0, 0, 0.25}, {{2, Role::kFfnUp}, 0, 0, 1e-30}};
    Write(SensitivityPath(adapter), SensitivityText(sensitivity));
  }
  static void Write(const std::string& path, const std::string& text) {
    ASSERT_TRUE(AtomicWriteFile(path, text).ok());
  }
  testing::TempFolder folder;
  std::string adapter = folder.Path("adapter");
  Sensitivity sensitivity;
  std::vector<adapters::ModuleScore> modules = {{{0, Role::kAttnQ}, 4, 4},
                                                {{2, Role::kFfnUp}, 4, 4}};
};

TEST(SensitivityFileTest, ScoresComeFromTheFileBesideTheAdapter) {
  TrainedRun run;
  ASSERT_THAT(ScoreSensitivity(run.adapter, &run.modules), testing::IsOk());
  EXPECT_EQ(run.modules[0].score, 0.25);
  EXPECT_EQ(run.modules[1].score, 1e-30);
  ASSERT_THAT(ScoreSensitivity(run.adapter + "/", &run.modules), testing::IsOk());
}

TEST(SensitivityFileTest, WhatDoesNotBelongToTheAdapterIsRefused) {
  TrainedRun run;
  run.modules[1].site.layer = 1;
  EXPECT_THAT(ScoreSensitivity(run.adapter, &run.modules),
              FailsWith(ErrorKind::kInput, "has no layer 1 ffn.up"));
  TrainedRun::Write(JoinPath(run.adapter, "adapter_model.safetensors"), "other tensors");
  EXPECT_THAT(ScoreSensitivity(run.adapter, &run.modules),
              FailsWith(ErrorKind::kInput, "adapter_sha256"));
  TrainedRun::Write(SensitivityPath(run.adapter), "{\"format\": \"graft-setting\"}");
  EXPECT_THAT(ScoreSensitivity(run.adapter, &run.modules),
              FailsWith(ErrorKind::kInput, "format: found \"graft-setting\""));
  run.sensitivity.modules[0].score = -1;
  TrainedRun::Write(SensitivityPath(run.adapter), SensitivityText(run.sensitivity));
  EXPECT_THAT(ScoreSensitivity(run.adapter, &run.modules),
              FailsWith(ErrorKind::kInput, "modules[0]: score"));
  ASSERT_TRUE(RemoveTree(SensitivityPath(run.adapter)).ok());
  EXPECT_THAT(ScoreSensitivity(run.adapter, &run.modules),
              FailsWith(ErrorKind::kInput, "adapter.track_sensitivity: true"));
}

}  // namespace
}  // namespace graft::trainer
