#include "base/json.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status.h"
#include "base/text.h"

namespace graft {
namespace {

using nlohmann::json;

// Builds the document while it is parsed, so that limits and duplicate keys stop it early (the DOM
// of nlohmann keeps the last of two equal keys silently).
class StrictHandler : public nlohmann::json_sax<json> {
 public:
  explicit StrictHandler(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(number_integer_t value) override { return Add(value); }
  bool number_unsigned(number_unsigned_t value) override { return Add(value); }
  bool number_float(number_float_t value, const string_t&) override { return Add(value); }
  bool string(string_t& value) override { return Add(std::move(value)); }
  bool binary(binary_t&) override { return Fail("binary data is not JSON"); }
  bool start_object(std::size_t) override { return Open(json::object()); }
  bool start_array(std::size_t) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& name) override {
    auto [entry, inserted] = stack_.back()->get_ref<json::object_t&>().emplace(name, nullptr);
    if (!inserted) {
      return Fail(absl::StrCat("key `", Printable(name), "` occurs twice in one object"));
    }
    keys_.back() = name;
    slot_ = &entry->second;
    return true;
  }

  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& e) override {
    std::string text = e.what();  // "[json.exception.parse_error.101] parse error at line 1, ..."
    const std::size_t end_of_tag = text.find("] ");
    if (end_of_tag != std::string::npos) text.erase(0, end_of_tag + 2);
    error_ = Printable(text);
    return false;
  }

  const std::string& error() const { return error_; }
  json TakeRoot() { return std::move(root_); }

 private:
  bool Fail(const std::string& what) {
    std::vector<std::string> path;
    for (const std::string& name : keys_) {
      if (!name.empty()) path.push_back(Printable(name, 64));
      if (path.size() == 8) break;
    }
    error_ = path.empty() ? what : absl::StrCat(absl::StrJoin(path, "."), ": ", what);
    return false;
  }

  // Puts a value where the parser stands; null when a limit is reached.
  json* Put(json&& value) {
    if (++num_values_ > limits_.max_values) {
      Fail(absl::StrCat("more than ", limits_.max_values, " values"));
      return nullptr;
    }
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.get_ref<json::array_t&>().push_back(std::move(value));
      return &parent.back();
    }
    *slot_ = std::move(value);
    return slot_;
  }

  bool Add(json&& value) { return Put(std::move(value)) != nullptr; }

  bool Open(json&& container) {
    if (static_cast<int>(stack_.size()) >= limits_.max_depth) {
      return Fail(absl::StrCat("nested deeper than ", limits_.max_depth, " levels"));
    }
    json* const place = Put(std::move(container));
    if (place == nullptr) return false;
    stack_.push_back(place);
    keys_.emplace_back();
    return true;
  }

  bool Close() {
    stack_.pop_back();
    keys_.pop_back();
    return true;
  }

  JsonLimits limits_;
  json root_;
  // Open containers. An array that grows moves its elements, but only while none of them is open.
  std::vector<json*> stack_;
  std::vector<std::string> keys_;  // last key of each open container
  json* slot_ = nullptr;           // where the value of the last key goes
  int64_t num_values_ = 0;
  std::string error_;
};

absl::Status KeyError(const std::string& origin, const std::string& key, const std::string& what) {
  return InputError(absl::StrCat(Printable(origin, 512), ": ", Printable(key), ": ", what));
}

absl::StatusOr<const json*> Find(const json& object, const std::string& key,
                                 const std::string& origin) {
  if (!object.is_object()) {
    return InputError(
        absl::StrCat(Printable(origin, 512), ": must be an object, found ", DescribeJson(object)));
  }
  const auto it = object.find(key);
  if (it == object.end()) return KeyError(origin, key, "missing key");
  return &*it;
}

// True only for an object: anything else goes on to the getter, which refuses it.
bool IsAbsent(const json& object, const std::string& key) {
  return object.is_object() && !HasValue(object, key);
}

absl::StatusOr<const json*> FindTyped(const json& object, const std::string& key,
                                      const std::string& origin, json::value_t type,
                                      const char* expected) {
  GRAFT_ASSIGN_OR_RETURN(const json* value, Find(object, key, origin));
  if (value->type() != type) {
    return KeyError(origin, key,
                    absl::StrCat("must be ", expected, ", found ", DescribeJson(*value)));
  }
  return value;
}

absl::StatusOr<int64_t> IntOf(const json& value, const std::string& key, int64_t min, int64_t max,
                              const std::string& origin) {
  const bool too_large =
      value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (value.is_number_integer() && !too_large) {
    const auto number = value.get<int64_t>();
    if (number >= min && number <= max) return number;
  }
  return KeyError(
      origin, key,
      absl::StrCat("must be an integer from ", min, " to ", max, ", found ", DescribeJson(value)));
}

}  // namespace

absl::StatusOr<json> ParseJson(const char* data, std::size_t size, const std::string& origin,
                               const JsonLimits& limits) {
  const std::string where = Printable(origin, 512);
  if (static_cast<int64_t>(size) > limits.max_bytes) {
    return InputError(absl::StrCat(where, ": ", size, " bytes of JSON, at most ", limits.max_bytes,
                                   " are allowed"));
  }
  if (size == 0) return InputError(absl::StrCat(where, ": is empty, must be JSON"));
  if (data[0] == '\xEF') {
    return InputError(absl::StrCat(where, ": starts with a byte-order mark, must be plain JSON"));
  }
  // nlohmann's lexer takes a NUL byte for the end of the text.
  if (std::memchr(data, 0, size) != nullptr) {
    return InputError(absl::StrCat(where, ": holds a NUL byte, must be JSON"));
  }
  StrictHandler handler(limits);
  if (!json::sax_parse(data, data + size, &handler)) {
    return InputError(absl::StrCat(where, ": ", handler.error()));
  }
  return handler.TakeRoot();
}

absl::StatusOr<json> ParseJson(const std::string& text, const std::string& origin,
                               const JsonLimits& limits) {
  return ParseJson(text.data(), text.size(), origin, limits);
}

absl::StatusOr<json> ReadJsonFile(const std::string& path, const JsonLimits& limits,
                                  bool follow_links) {
  ReadOptions options;
  options.follow_links = follow_links;
  GRAFT_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, limits.max_bytes, options));
  return ParseJson(text, path, limits);
}

std::string DescribeJson(const json& value) {
  switch (value.type()) {
    case json::value_t::null:
      return "null";
    case json::value_t::object:
      return "an object";
    case json::value_t::array:
      return absl::StrCat("an array of ", value.size());
    case json::value_t::string:
      return absl::StrCat("the string \"", Printable(value.get_ref<const std::string&>()), "\"");
    case json::value_t::boolean:
      return value.get<bool>() ? "true" : "false";
    case json::value_t::number_float:
      return absl::StrCat("the number ", FormatReal(value.get<double>()));
    default:
      return absl::StrCat("the number ", value.dump());
  }
}

bool HasValue(const json& object, const std::string& key) {
  if (!object.is_object()) return false;
  const auto it = object.find(key);
  return it != object.end() && !it->is_null();
}

absl::StatusOr<bool> GetBool(const json& object, const std::string& key,
                             const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const json* value,
                         FindTyped(object, key, origin, json::value_t::boolean, "true or false"));
  return value->get<bool>();
}

absl::StatusOr<bool> GetBoolOr(const json& object, const std::string& key, bool fallback,
                               const std::string& origin) {
  if (IsAbsent(object, key)) return fallback;
  return GetBool(object, key, origin);
}

absl::StatusOr<int64_t> GetInt(const json& object, const std::string& key, int64_t min, int64_t max,
                               const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const json* value, Find(object, key, origin));
  return IntOf(*value, key, min, max, origin);
}

absl::StatusOr<int64_t> GetIntOr(const json& object, const std::string& key, int64_t fallback,
                                 int64_t min, int64_t max, const std::string& origin) {
  if (IsAbsent(object, key)) return fallback;
  return GetInt(object, key, min, max, origin);
}

absl::StatusOr<double> GetReal(const json& object, const std::string& key, double min, double max,
                               const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const json* value, Find(object, key, origin));
  if (value->is_number()) {
    const auto number = value->get<double>();
    if (std::isfinite(number) && number >= min && number <= max) return number;
  }
  return KeyError(origin, key,
                  absl::StrCat("must be a number from ", FormatReal(min), " to ", FormatReal(max),
                               ", found ", DescribeJson(*value)));
}

absl::StatusOr<double> GetRealOr(const json& object, const std::string& key, double fallback,
                                 double min, double max, const std::string& origin) {
  if (IsAbsent(object, key)) return fallback;
  return GetReal(object, key, min, max, origin);
}

absl::StatusOr<std::string> GetString(const json& object, const std::string& key,
                                      const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const json* value,
                         FindTyped(object, key, origin, json::value_t::string, "a string"));
  return value->get_ref<const std::string&>();
}

absl::StatusOr<std::string> GetStringOr(const json& object, const std::string& key,
                                        const std::string& fallback, const std::string& origin) {
  if (IsAbsent(object, key)) return fallback;
  return GetString(object, key, origin);
}

absl::StatusOr<std::vector<int64_t>> GetIntList(const json& object, const std::string& key,
                                                int64_t min, int64_t max,
                                                const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const json* list, GetArray(object, key, origin));
  std::vector<int64_t> values;
  values.reserve(list->size());
  for (std::size_t i = 0; i < list->size(); ++i) {
    GRAFT_ASSIGN_OR_RETURN(const int64_t value,
                           IntOf((*list)[i], absl::StrCat(key, "[", i, "]"), min, max, origin));
    values.push_back(value);
  }
  return values;
}

absl::StatusOr<std::vector<std::string>> GetStringList(const json& object, const std::string& key,
                                                       const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const json* list, GetArray(object, key, origin));
  std::vector<std::string> values;
  values.reserve(list->size());
  for (std::size_t i = 0; i < list->size(); ++i) {
    const json& element = (*list)[i];
    if (!element.is_string()) {
      return KeyError(origin, absl::StrCat(key, "[", i, "]"),
                      absl::StrCat("must be a string, found ", DescribeJson(element)));
    }
    values.push_back(element.get_ref<const std::string&>());
  }
  return values;
}

absl::StatusOr<const json*> GetObject(const json& object, const std::string& key,
                                      const std::string& origin) {
  return FindTyped(object, key, origin, json::value_t::object, "an object");
}

absl::StatusOr<const json*> GetArray(const json& object, const std::string& key,
                                     const std::string& origin) {
  return FindTyped(object, key, origin, json::value_t::array, "an array");
}

absl::Status CheckKnownKeys(const json& object, const std::vector<std::string>& known,
                            const std::string& origin) {
  for (const auto& [key, value] : object.items()) {
    bool found = false;
    for (const std::string& name : known) found = found || name == key;
    if (!found) {
      return KeyError(origin, key, absl::StrCat("unknown key", DidYouMean(key, known)));
    }
  }
  return absl::OkStatus();
}

}  // namespace graft
