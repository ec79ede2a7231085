#include "models/weights/weight_source.h"

#include <fstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "models/weights/safetensors.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft::models {
namespace {

// Bytes of mapped files in this process's resident set.
int64_t ResidentFileBytes() {
  std::ifstream lines("/proc/self/status");
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("RssFile:", 0) == 0) return 1024 * std::stoll(line.substr(8));
  }
  return -1;
}

// Of a tensor that was converted, and so is not read again, no page of the file stays resident.
TEST(FolderWeights, PagesGoWithTheTensor) {
  const testing::TempFolder folder;
  constexpr int64_t kRows = 4096, kWidth = 1024, kBytes = kRows * kWidth * 4;
  const std::vector<float> values(kRows * kWidth, 0.5f);
  ASSERT_THAT(WriteSafetensors(JoinPath(folder.path(), "model.safetensors"),
                               {{"w", TensorType::kFloat32, {kRows, kWidth}, values.data()}}, {}),
              testing::IsOk());
  auto weights = OpenFolderWeights(folder.path(), SafetensorsFile::Options());
  ASSERT_THAT(weights, testing::IsOk());
  const int64_t before = ResidentFileBytes();
  ASSERT_GT(before, 0);
  const auto converted = (*weights)->Load("w", {kRows, kWidth}, torch::kBFloat16);
  ASSERT_THAT(converted, testing::IsOk());
  EXPECT_EQ(converted->sum().item<double>(), 0.5 * kRows * kWidth);
  EXPECT_LT(ResidentFileBytes() - before, kBytes / 2);
}

}  // namespace
}  // namespace graft::models
