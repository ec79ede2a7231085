// Methods on GPT-2's fused projection: what is trained, what the folder holds, what is refused.
#include "adapters/fused_sites.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "models/backbone.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

using models::SiteSpec;
using ::testing::HasSubstr;

std::vector<SiteSpec> Gpt2Sites(const std::string& shape = "gpt2-tiny") {
  return models::ListSites(ValueOrThrow(models::NamedShape(shape)));
}

std::vector<SiteSpec> Match(const Method& method, const std::string& shape = "gpt2-tiny") {
  return ValueOrThrow(method.MatchSites(Gpt2Sites(shape)));
}

NamedTensors RandomParameters(const Method& method, const std::vector<SiteSpec>& matched) {
  at::manual_seed(5);
  NamedTensors tensors;
  for (const ParameterSpec& p : method.Parameters(matched)) {
    tensors.emplace_back(p.name, at::randn(p.shape));
  }
  return tensors;
}

absl::Status ReadBack(const Method& method, const std::vector<SiteSpec>& matched,
                      const NamedTensors& folder) {
  const auto config = method.PeftConfig(matched, {"", "CAUSAL_LM"});
  return method.FromFolder(matched, config, folder, "a").status();
}

class RoundTrip : public ::testing::TestWithParam<std::pair<const char*, FieldList>> {};

TEST_P(RoundTrip, GivesTheParametersBack) {
  const auto method = MethodWith(GetParam().first, GetParam().second);
  const auto matched = Match(*method);
  const NamedTensors parameters = RandomParameters(*method, matched);
  const auto config = method->PeftConfig(matched, {"", "CAUSAL_LM"});
  const auto back = method->FromFolder(matched, config, method->ToFolder(matched, parameters), "a");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_TRUE(CheckAdapterTensors(*method, matched, *back, "a").ok());
  for (const auto& [name, value] : parameters) {
    EXPECT_TRUE(at::equal(FindTensor(*back, name), value)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Methods, RoundTrip,
    ::testing::Values(std::pair<const char*, FieldList>{"ia3", {}},
                      std::pair<const char*, FieldList>{"ia3", {{"sites", "[attn.q, attn.v]"}}},
                      std::pair<const char*, FieldList>{"lora", {{"sites", "[all]"}}},
                      std::pair<const char*, FieldList>{"lora", {{"sites", "[attn.k]"}}},
                      std::pair<const char*, FieldList>{"lora",
                                                        {{"sites", "[all]"}, {"fused", "joint"}}},
                      std::pair<const char*, FieldList>{"red", {{"sites", "[attn.q, attn.v]"}}},
                      std::pair<const char*, FieldList>{"red", {{"sites", "[all]"}}}));

TEST(FusedSites, SplitLoraStandsInTheFolderAsOneOfTwiceTheRank) {
  const auto method = MethodWith("lora", {{"rank", "4"}, {"alpha", "6"}});
  const auto matched = Match(*method);
  const auto folder = method->ToFolder(matched, RandomParameters(*method, matched));
  const std::string module = "transformer.h.0.attn.c_attn";
  const torch::Tensor b = FindTensor(folder, "base_model.model." + module + ".lora_B.weight");
  EXPECT_EQ(b.sizes(), (std::vector<int64_t>{192, 8}));
  EXPECT_EQ(b.count_nonzero().item<int64_t>(), 2 * 64 * 4);
  const auto config = method->PeftConfig(matched, {"", "CAUSAL_LM"});
  EXPECT_EQ(config.at("r"), 4);
  EXPECT_EQ(config.at("rank_pattern").at(module), 8);
  EXPECT_EQ(config.at("alpha_pattern").at(module), 12);
  EXPECT_EQ(config.at("target_modules").size(), 4u);  // each layer's module once
  EXPECT_TRUE(config.at("fan_in_fan_out").get<bool>());
}

TEST(FusedSites, WhatSplitCannotHoldIsRefused) {
  const auto method = MethodWith("lora", {{"rank", "4"}});
  const auto matched = Match(*method);
  NamedTensors folder = method->ToFolder(matched, RandomParameters(*method, matched));
  for (auto& [name, value] : folder) value = at::ones_like(value);
  const absl::Status status = ReadBack(*method, matched, folder);
  EXPECT_EQ(ExitCodeOf(status), 65);
  EXPECT_THAT(std::string(status.message()), HasSubstr("adapter.fused: joint"));
}

TEST(FusedSites, JointNeedsTheWholeModule) {
  const auto method = MethodWith("lora", {{"fused", "joint"}});
  const auto matched = method->MatchSites(Gpt2Sites());
  EXPECT_EQ(ExitCodeOf(matched.status()), 78);
  EXPECT_THAT(std::string(matched.status().message()), HasSubstr("attn.q, attn.k, attn.v"));
}

TEST(FusedSites, FixedEntriesOfAFolderMustBeFixed) {
  const auto method = MethodWith("red", {{"sites", "[attn.q]"}});
  const auto matched = Match(*method);
  NamedTensors folder = method->ToFolder(matched, RandomParameters(*method, matched));
  EXPECT_TRUE(ReadBack(*method, matched, folder).ok());
  for (auto& [name, value] : folder) value = value.clone().fill_(0.5);
  const absl::Status status = ReadBack(*method, matched, folder);
  EXPECT_EQ(ExitCodeOf(status), 65);
  EXPECT_THAT(std::string(status.message()), HasSubstr("outside the roles"));
}

// methods.md 13, and 5 for the larger GPT-2s.
TEST(FusedSites, CountsOfGpt2) {
  const auto count = [](const char* name, const FieldList& fields, const std::string& shape) {
    const auto method = MethodWith(name, fields);
    return method->CountParameters(Match(*method, shape));
  };
  EXPECT_EQ(count("lora", {}, "gpt2"), 294'912);
  EXPECT_EQ(count("lora", {{"sites", "[all]"}}, "gpt2"), 1'327'104);
  EXPECT_EQ(count("lora", {{"sites", "[attn.q, attn.k, attn.v]"}, {"fused", "joint"}}, "gpt2"),
            12 * 8 * (768 + 3 * 768));
  EXPECT_EQ(count("red", {}, "gpt2"), 18'432);
  EXPECT_EQ(count("red", {}, "gpt2-medium"), 49'152);
  EXPECT_EQ(count("red", {}, "gpt2-large"), 92'160);
}

}  // namespace
}  // namespace graft::adapters
