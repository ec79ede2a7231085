// Expectations about absl::Status: its kind and a part of its message.
#pragma once

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"

namespace graft::testing {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& value) {
  return value.status();
}

// EXPECT_THAT(value, FailsWith(ErrorKind::kInput, "file.json: key")): works for Status and
// StatusOr.
MATCHER_P2(FailsWith, kind, part, "") {
  const absl::Status& status = StatusOf(arg);
  *result_listener << status.ToString();
  return !status.ok() && KindOf(status) == kind &&
         std::string(status.message()).find(part) != std::string::npos;
}

MATCHER(IsOk, "") {
  *result_listener << StatusOf(arg).ToString();
  return arg.ok();
}

}  // namespace graft::testing
