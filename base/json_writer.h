// Writes JSON whose numbers read back exactly and whose bytes depend on the values alone: real
// numbers with 17 significant digits and marked as such (76.0), keys in the order given. For
// importance.json and setting.json; other files go through nlohmann's dump.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace graft {

// An object with one key a line; lists of objects have one object a line, everything deeper stays
// on its line. Ends with a line feed. Numbers must be finite and strings UTF-8: the caller has
// checked.
std::string WriteJson(const nlohmann::ordered_json& object);

}  // namespace graft
