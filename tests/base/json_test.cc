#include "base/json.h"

#include <limits>
#include <random>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft {
namespace {

using nlohmann::json;
using testing::FailsWith;

TEST(ParseJson, BuildsTheSameDocumentAsNlohmann) {
  const std::string text =
      R"({"a": [1, -2, 3.5, "x\u00e9", true, null, [], {}], "b": {"c": {"d": [[1], [2, 3]]}}})";
  EXPECT_EQ(*ParseJson(text, "t"), json::parse(text));
  EXPECT_EQ(*ParseJson("7", "t"), json(7));
}

struct BadJson {
  const char* name;
  std::string text;
  const char* message;
};

class ParseJsonRefuses : public ::testing::TestWithParam<BadJson> {};

TEST_P(ParseJsonRefuses, WithFileAndReason) {
  const absl::StatusOr<json> parsed = ParseJson(GetParam().text, "dir/config.json");
  EXPECT_THAT(parsed, FailsWith(ErrorKind::kInput, GetParam().message));
  EXPECT_THAT(parsed, FailsWith(ErrorKind::kInput, "dir/config.json: "));
  EXPECT_EQ(std::string(parsed.status().message()).find('\n'), std::string::npos);
  EXPECT_LT(parsed.status().message().size(), 400u);
}

INSTANTIATE_TEST_SUITE_P(
    Rows, ParseJsonRefuses,
    ::testing::Values(
        BadJson{"Empty", "", "is empty"}, BadJson{"NotJson", "hello", "line 1, column 1"},
        BadJson{"Truncated", "{\n\"a\": [1,", "line 2"},
        BadJson{"TextAfter", "{} {}", "line 1, column 4"},
        BadJson{"DuplicateKey", R"({"a": {"b": 1, "b": 2}})", "a.b: key `b` occurs twice"},
        BadJson{"DuplicateKeyEscaped", R"({"a": 1, "\u0061": 2})", "key `a` occurs twice"},
        BadJson{"Deep", std::string(100'000, '['), "nested deeper than 64"},
        BadJson{"DeepObjects",
                [] {
                  std::string text;
                  for (int i = 0; i < 1000; ++i) text += "{\"a\":";
                  return text;
                }(),
                "nested deeper than 64"},
        BadJson{"TooLarge", std::string((1 << 20) + 1, '['), "at most 1048576"},
        BadJson{"InvalidUtf8", "{\"a\": \"\xFF\"}", "UTF-8"},
        BadJson{"ByteOrderMark", "\xEF\xBB\xBF{}", "byte-order mark"},
        BadJson{"Nan", R"({"a": NaN})", "line 1"},
        BadJson{"Overflow", R"({"a": 1e400})", "number overflow"},
        BadJson{"Comment", "{/* x */}", "line 1"},
        BadJson{"Nul", std::string("{}\0", 3), "NUL"}),
    [](const auto& row) { return row.param.name; });

TEST(ParseJson, StopsAtTheNumberOfValues) {
  JsonLimits limits;
  limits.max_values = 5;
  EXPECT_TRUE(ParseJson("[1,2,3,4]", "t", limits).ok());
  EXPECT_THAT(ParseJson("[1,2,3,4,5]", "t", limits),
              FailsWith(ErrorKind::kInput, "more than 5 values"));
}

TEST(ReadJsonFile, NamesTheFile) {
  const testing::TempFolder folder;
  EXPECT_EQ(*ReadJsonFile(folder.Write("a.json", "[1]")), json({1}));
  EXPECT_THAT(ReadJsonFile(folder.Path("b.json")), FailsWith(ErrorKind::kInput, "b.json"));
  EXPECT_THAT(ReadJsonFile(folder.Write("c.json", std::string(2 << 20, ' '))),
              FailsWith(ErrorKind::kInput, "at most 1048576"));
}

class Getters : public ::testing::Test {
 protected:
  const json object_ = json::parse(
      R"({"i": 7, "neg": -1, "real": 2.5, "whole": 8.0, "huge": 18446744073709551615, "big": 1e18,
          "s": "text", "b": true, "none": null, "ints": [1, 2], "mixed": [1, "x"],
          "strings": ["a", "b"], "o": {"k": 1}})");
};

TEST_F(Getters, ReadValues) {
  EXPECT_EQ(*GetInt(object_, "i", 0, 10, "f"), 7);
  EXPECT_EQ(*GetReal(object_, "i", 0, 10, "f"), 7.0);
  EXPECT_EQ(*GetReal(object_, "real", 0, 10, "f"), 2.5);
  EXPECT_EQ(*GetString(object_, "s", "f"), "text");
  EXPECT_TRUE(*GetBool(object_, "b", "f"));
  EXPECT_EQ(*GetIntList(object_, "ints", 0, 9, "f"), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(*GetStringList(object_, "strings", "f"), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(*GetInt(**GetObject(object_, "o", "f"), "k", 0, 9, "f: o"), 1);
  EXPECT_EQ((*GetArray(object_, "ints", "f"))->size(), 2u);
}

TEST_F(Getters, FallBackOnlyWhenAbsentOrNull) {
  EXPECT_EQ(*GetIntOr(object_, "absent", 3, 0, 10, "f"), 3);
  EXPECT_EQ(*GetIntOr(object_, "none", 3, 0, 10, "f"), 3);
  EXPECT_EQ(*GetStringOr(object_, "absent", "d", "f"), "d");
  EXPECT_EQ(*GetRealOr(object_, "absent", 0.5, 0, 1, "f"), 0.5);
  EXPECT_EQ(*GetBoolOr(object_, "absent", true, "f"), true);
  EXPECT_FALSE(GetIntOr(object_, "s", 3, 0, 10, "f").ok());
  EXPECT_FALSE(GetIntOr(json::array(), "absent", 3, 0, 10, "f").ok());
}

TEST_F(Getters, ErrorsSayFileKeyFoundAllowed) {
  const auto fails = [](const char* text) { return FailsWith(ErrorKind::kInput, text); };
  EXPECT_THAT(GetInt(object_, "absent", 0, 1, "f"), fails("f: absent: missing key"));
  EXPECT_THAT(GetInt(object_, "neg", 1, 65536, "f"),
              fails("f: neg: must be an integer from 1 to 65536, found the number -1"));
  EXPECT_THAT(GetInt(object_, "whole", 0, 10, "f"), fails("found the number 8.0"));
  EXPECT_THAT(GetInt(object_, "big", 0, INT64_MAX, "f"), fails("found the number 1e+18"));
  EXPECT_THAT(GetInt(object_, "huge", INT64_MIN, INT64_MAX, "f"),
              fails("found the number 18446744073709551615"));
  EXPECT_THAT(GetInt(object_, "s", 0, 10, "f"), fails("found the string \"text\""));
  EXPECT_THAT(GetReal(object_, "real", 3, 4, "f"), fails("from 3.0 to 4.0, found the number 2.5"));
  EXPECT_THAT(GetBool(object_, "i", "f"), fails("f: i: must be true or false, found the number 7"));
  EXPECT_THAT(GetString(object_, "none", "f"), fails("f: none: must be a string, found null"));
  EXPECT_THAT(GetIntList(object_, "mixed", 0, 9, "f"), fails("f: mixed[1]: must be an integer"));
  EXPECT_THAT(GetStringList(object_, "mixed", "f"), fails("f: mixed[0]: must be a string"));
  EXPECT_THAT(GetObject(object_, "ints", "f"),
              fails("f: ints: must be an object, found an array of 2"));
  EXPECT_THAT(GetInt(json::array(), "x", 0, 1, "f"), fails("f: must be an object, found an array"));
}

TEST_F(Getters, UnknownKeysAreRefusedWithTheNearest) {
  const json object = {{"rank", 8}, {"lora_alfa", 16}};
  EXPECT_THAT(
      CheckKnownKeys(object, {"rank", "lora_alpha"}, "f"),
      FailsWith(ErrorKind::kInput, "f: lora_alfa: unknown key; did you mean `lora_alpha`?"));
  EXPECT_TRUE(CheckKnownKeys(object, {"rank", "lora_alfa"}, "f").ok());
}

// A mutated document either fails cleanly or is what nlohmann reads too.
TEST(ParseJson, SurvivesRandomMutations) {
  const std::string valid =
      R"({"hidden_size": 64, "rope": {"factor": 8.0, "list": [1, 2.5e3, "a\n"]}, "ok": true})";
  std::mt19937 random(5);
  int refused = 0;
  for (int i = 0; i < 1000; ++i) {
    std::string text = valid;
    for (unsigned edits = 1 + random() % 3; edits > 0; --edits) {
      text[random() % text.size()] = static_cast<char>(random() % 256);
    }
    const absl::StatusOr<json> parsed = ParseJson(text, "t");
    if (parsed.ok()) {
      EXPECT_EQ(*parsed, json::parse(text));
    } else {
      EXPECT_EQ(KindOf(parsed.status()), ErrorKind::kInput);
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace graft
