// The form of what `graft inspect` prints.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"

namespace graft::trainer {

// "name              value\n", the values in one column.
inline void AddLine(const std::string& name, const std::string& value, std::string* text) {
  constexpr std::size_t kColumn = 18;
  const std::size_t pad = name.size() < kColumn ? kColumn - name.size() : 1;
  absl::StrAppend(text, name, std::string(pad, ' '), value, "\n");
}

inline void AddLine(const std::string& name, int64_t value, std::string* text) {
  AddLine(name, absl::StrCat(value), text);
}

}  // namespace graft::trainer
