#include "base/json_writer.h"

#include <gtest/gtest.h>

namespace graft {
namespace {

TEST(JsonWriterTest, WritesNumbersExactlyAndMarksReals) {
  const std::string text = WriteJson({{"z", 0.1},
                                      {"whole", 76.0},
                                      {"tiny", 1e-300},
                                      {"minus", -0.0},
                                      {"count", 76},
                                      {"a\"b", nullptr},
                                      {"list", {1, 2.5, "x"}},
                                      {"empty", nlohmann::ordered_json::array()}});
  EXPECT_EQ(text,
            "{\n"
            "  \"z\": 0.10000000000000001,\n"
            "  \"whole\": 76.0,\n"
            "  \"tiny\": 1e-300,\n"
            "  \"minus\": -0.0,\n"
            "  \"count\": 76,\n"
            "  \"a\\\"b\": null,\n"
            "  \"list\": [1, 2.5, \"x\"],\n"
            "  \"empty\": []\n"
            "}\n");
}

TEST(JsonWriterTest, AListOfObjectsHasOneALine) {
  const nlohmann::ordered_json rows = {{{"b", 1}, {"a", {true, 0.5}}}, {{"b", 2}}};
  EXPECT_EQ(WriteJson({{"rows", rows}}),
            "{\n  \"rows\": [\n    {\"b\": 1, \"a\": [true, 0.5]},\n    {\"b\": 2}\n  ]\n}\n");
}

}  // namespace
}  // namespace graft
