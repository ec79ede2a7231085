#include "adapters/setting.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/status.h"

namespace graft::adapters {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json Valid() {
  return json::parse(R"({"format": "graft-setting", "version": 1, "model_type": "llama",
    "num_layers": 4, "selection": {"rule": "top_k_per_layer", "k": 2},
    "keep": [{"layer": 3, "roles": ["ffn.down"], "rank": 4, "alpha": 8},
             {"layer": 0, "roles": ["ffn.up", "attn.q"], "rank": 38, "alpha": 76.5}]})");
}

TEST(Setting, IsReadInLayerAndRoleOrder) {
  const auto setting = ParseSetting(Valid(), "setting.json");
  ASSERT_TRUE(setting.ok()) << setting.status();
  EXPECT_EQ(setting->model_type, "llama");
  EXPECT_EQ(setting->num_layers, 4);
  ASSERT_EQ(setting->keep.size(), 2u);
  EXPECT_EQ(setting->keep[0].layer, 0);
  EXPECT_THAT(setting->keep[0].roles, ElementsAre(models::Role::kAttnQ, models::Role::kFfnUp));
  EXPECT_EQ(setting->keep[0].rank, 38);
  EXPECT_EQ(setting->keep[0].alpha, 76.5);
  EXPECT_EQ(setting->keep[1].layer, 3);
}

struct Broken {
  const char* patch;  // JSON merge patch
  const char* message;
};

class BrokenSetting : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenSetting, IsAnInputErrorThatNamesThePlace) {
  json setting = Valid();
  setting.merge_patch(json::parse(GetParam().patch));
  const absl::Status status = ParseSetting(setting, "a/setting.json").status();
  EXPECT_EQ(ExitCodeOf(status), 65) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("a/setting.json: "));
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

#define KEEP(entries) "{\"keep\": [" entries "]}"
INSTANTIATE_TEST_SUITE_P(
    Files, BrokenSetting,
    ::testing::Values(
        Broken{R"({"colour": 1})", "colour"}, Broken{R"({"format": "graft-dataset"})", "format"},
        Broken{R"({"version": 2})", "version: found 2"}, Broken{R"({"model_type": null})", "model"},
        Broken{R"({"num_layers": 0})", "num_layers"}, Broken{R"({"selection": 3})", "selection"},
        Broken{KEEP(""), "names no layer"},
        Broken{KEEP(R"({"layer": 4, "roles": ["attn.q"], "rank": 4, "alpha": 8})"),
               "keep[0]: layer"},
        Broken{KEEP(R"({"layer": 1, "roles": [], "rank": 4, "alpha": 8})"), "names no role"},
        Broken{KEEP(R"({"layer": 1, "roles": ["attn.x"], "rank": 4, "alpha": 8})"), "attn.x"},
        Broken{KEEP(R"({"layer": 1, "roles": ["ffn.out"], "rank": 4, "alpha": 8})"), "ffn.out"},
        Broken{KEEP(R"({"layer": 1, "roles": ["attn.q", "attn.q"], "rank": 4, "alpha": 8})"),
               "attn.q comes twice"},
        Broken{KEEP(R"({"layer": 1, "roles": ["attn.q"], "rank": 0, "alpha": 8})"), "rank"},
        Broken{KEEP(R"({"layer": 1, "roles": ["attn.q"], "rank": 4, "alpha": 0})"), "alpha"},
        Broken{KEEP(R"({"layer": 1, "roles": ["attn.q"], "rank": 4, "alpha": 8, "beta": 1})"),
               "beta"},
        Broken{KEEP(R"({"layer": 1, "roles": ["attn.q"], "rank": 4, "alpha": 8},
                       {"layer": 1, "roles": ["attn.k"], "rank": 4, "alpha": 8})"),
               "keep[1]: layer: 1 comes twice"}));

TEST(Setting, OtherJsonIsAnInputError) {
  for (const char* text : {"[]", "3", "null", "{}", R"({"keep": 1})"}) {
    EXPECT_EQ(ExitCodeOf(ParseSetting(json::parse(text), "f").status()), 65) << text;
  }
}

}  // namespace
}  // namespace graft::adapters
