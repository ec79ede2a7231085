#include "base/json_writer.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace graft {
namespace {

using nlohmann::ordered_json;

// The value on one line.
void Append(const ordered_json& value, std::string* text) {
  const char* separator = "";
  if (value.is_number_float()) {
    const std::string number = absl::StrFormat("%.17g", value.get<double>());
    const bool marked = number.find_first_of(".e") != std::string::npos;
    absl::StrAppend(text, number, marked ? "" : ".0");
  } else if (value.is_object()) {
    absl::StrAppend(text, "{");
    for (const auto& [key, entry] : value.items()) {
      absl::StrAppend(text, separator, ordered_json(key).dump(), ": ");
      Append(entry, text);
      separator = ", ";
    }
    absl::StrAppend(text, "}");
  } else if (value.is_array()) {
    absl::StrAppend(text, "[");
    for (const ordered_json& entry : value) {
      absl::StrAppend(text, separator);
      Append(entry, text);
      separator = ", ";
    }
    absl::StrAppend(text, "]");
  } else {
    absl::StrAppend(text, value.dump());
  }
}

bool IsTable(const ordered_json& value) {
  return value.is_array() && !value.empty() && value[0].is_object();
}

void AppendTable(const ordered_json& table, std::string* text) {
  const char* separator = "";
  absl::StrAppend(text, "[");
  for (const ordered_json& row : table) {
    absl::StrAppend(text, separator, "\n    ");
    Append(row, text);
    separator = ",";
  }
  absl::StrAppend(text, "\n  ]");
}

}  // namespace

std::string WriteJson(const ordered_json& object) {
  std::string text = "{";
  const char* separator = "";
  for (const auto& [key, value] : object.items()) {
    absl::StrAppend(&text, separator, "\n  ", ordered_json(key).dump(), ": ");
    if (IsTable(value)) {
      AppendTable(value, &text);
    } else {
      Append(value, &text);
    }
    separator = ",";
  }
  absl::StrAppend(&text, "\n}\n");
  return text;
}

}  // namespace graft
