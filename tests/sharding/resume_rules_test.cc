#include "sharding/resume_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/sharding/tiny_run.h"
#include "tests/testing/status_matchers.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;

TEST(ResumeRules, DifferencesInFixedValuesNameBoth) {
  EXPECT_THAT(CompareFixed({{"a", "1"}, {"b", "2"}}, {{"a", "1"}, {"b", "2"}}, "c"), IsOk());
  EXPECT_THAT(CompareFixed({{"a", "1"}, {"b", "2"}}, {{"a", "1"}, {"b", "3"}}, "c"),
              FailsWith(ErrorKind::kIo, "b is `2` in the checkpoint and `3` now"));
  EXPECT_THAT(CompareFixed({{"a", "1"}}, {}, "c"),
              FailsWith(ErrorKind::kIo, "a is `1` in the checkpoint and absent now"));
  EXPECT_THAT(CompareFixed({}, {{"a", ""}}, "c"),
              FailsWith(ErrorKind::kIo, "a is absent in the checkpoint and `` now"));
  TextMap many;
  for (int i = 0; i < 7; ++i) many[std::to_string(i)] = "x";
  EXPECT_THAT(CompareFixed(many, {}, "c"), FailsWith(ErrorKind::kIo, "and 3 more"));
}

TEST(ResumeRules, OtherParametersAreListed) {
  Manifest saved = testing::TinyManifest(1);
  saved.tensors = {{"exp_avg/a", "f", "F32", {2}, 0},
                   {"param/a", "f", "F32", {2}, 0},
                   {"param/b", "f", "F32", {3, 4}, 0}};
  EXPECT_THAT(CompareParameters(saved, {{"a", {2}}, {"b", {3, 4}}}, "c"), IsOk());
  EXPECT_THAT(CompareParameters(saved, {{"a", {2}}}, "c"),
              FailsWith(ErrorKind::kIo, "only in the checkpoint: b"));
  EXPECT_THAT(CompareParameters(saved, {{"a", {2}}, {"b", {3, 4}}, {"z", {1}}}, "c"),
              FailsWith(ErrorKind::kIo, "not in the checkpoint: z"));
  EXPECT_THAT(CompareParameters(saved, {{"a", {2}}, {"b", {4, 3}}}, "c"),
              FailsWith(ErrorKind::kIo, "b is (3, 4) in the checkpoint and (4, 3) now"));
}

}  // namespace
}  // namespace graft::sharding
