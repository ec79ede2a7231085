#include "adapters/para.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "adapters/para_generator.h"
#include "base/status.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

using ::testing::HasSubstr;

TEST(Rational, IsItsFormulaAndStartsNearGelu) {
  const auto a = at::tensor({0.0, 0.5, 0.410750, 0.113566, 0.011184, 0.000171});
  const auto b = at::tensor({0.0, 0.227132, 0.0, 0.000341});
  const auto x = at::linspace(-5, 5, 501);
  EXPECT_LT((Rational(x, a, b) - at::gelu(x)).abs().max().item<double>(), 0.005);
  const auto other_a = at::randn({6}), other_b = at::randn({4});
  torch::Tensor numerator = at::zeros_like(x), below = at::zeros_like(x);
  for (int64_t j = 0; j < 6; ++j) numerator = numerator + other_a[j] * x.pow(j);
  for (int64_t k = 1; k < 5; ++k) below = below + other_b[k - 1] * x.pow(k);
  EXPECT_LT(RelativeError(Rational(x, other_a, other_b), numerator / (1 + below.abs())), 1e-4);
}

class ParaGeneration : public ::testing::TestWithParam<const char*> {};

// Vectors are made from the whole prompt when a sequence begins and kept while it goes on.
TEST_P(ParaGeneration, PromptThenOneRowAtATimeEqualsOneFullPass) {
  const ToyModel toy;
  const auto method =
      MethodWith("para", {{"rank", "3"}, {"pooling", GetParam()}, {"bias", "true"}});
  models::SiteTable table;
  const auto set = *AdapterSet::Attach(*method, *method->MatchSites(ToyModel::Sites()), {}, table);
  at::NoGradGuard no_grad;
  at::manual_seed(2);
  set->values().add_(at::randn_like(set->values()), 0.4);
  const auto x = at::randn({9, 6});
  // Two samples of 4 and 5 rows with prompts of 2 and 3.
  const auto full = toy.Run(x, table, BatchOf({4, 5}), false);

  models::SequenceStates states;
  const auto run = [&](const std::vector<models::Segment>& segments, const torch::Tensor& rows) {
    models::MicroBatch batch;
    batch.segments = segments;
    return toy.Run(rows, table, batch, false, &states);
  };
  const auto begin =
      run({{0, 0, 2, 2}, {1, 2, 3, 3}}, at::cat({x.narrow(0, 0, 2), x.narrow(0, 4, 3)}));
  EXPECT_LT(RelativeError(begin, at::cat({full.narrow(0, 0, 2), full.narrow(0, 4, 3)})), 1e-5);
  // The first goes on; a third begins beside it with the rows of the second.
  const auto mixed =
      run({{0, 0, 1, 0}, {2, 1, 3, 3}}, at::cat({x.narrow(0, 2, 1), x.narrow(0, 4, 3)}));
  EXPECT_LT(RelativeError(mixed, at::cat({full.narrow(0, 2, 1), full.narrow(0, 4, 3)})), 1e-5);
  const auto on =
      run({{1, 0, 1, 0}, {0, 1, 1, 0}}, at::cat({x.narrow(0, 7, 1), x.narrow(0, 3, 1)}));
  EXPECT_LT(RelativeError(on, at::cat({full.narrow(0, 7, 1), full.narrow(0, 3, 1)})), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Pooling, ParaGeneration,
                         ::testing::Values("mean", "last", "max", "attention"));

TEST(Para, MatchesTheLayersThatItReads) {
  const auto method = MethodWith("para", {{"sites", "[attn.v, ffn.up]"}, {"rank", "2"}});
  const auto matched = *method->MatchSites(LlamaSites(1, 8, 4, 12));
  const auto parameters = method->Parameters(matched);
  ASSERT_EQ(parameters.size(), 2u);
  EXPECT_EQ(parameters[0].name, "base_model.model.model.layers.0.para.down.weight");
  EXPECT_EQ(parameters[0].shape, (std::vector<int64_t>{2, 8}));
  EXPECT_EQ(parameters[1].name, "base_model.model.model.layers.0.para.up.weight");
  EXPECT_EQ(parameters[1].shape, (std::vector<int64_t>{4 + 12, 2}));
}

TEST(Para, OtherPlacesAreRecipeErrors) {
  const auto method = *NewMethod("para");
  const absl::Status status = ReadFieldList({{"sites", "[attn.k]"}}, "test",
                                            [&](FieldVisitor& v) { method->VisitFields(v); });
  EXPECT_EQ(ExitCodeOf(status), 78);
  EXPECT_THAT(std::string(status.message()), HasSubstr("attn.q, attn.v, ffn.up"));
}

TEST(Para, FoldersWithAnotherSwitchAreRefused) {
  const auto sites = LlamaSites(1, 8, 4, 12);
  const auto plain = MethodWith("para", {});
  for (const auto& [key, value] : std::vector<std::pair<std::string, std::string>>{
           {"pooling", "last"}, {"activation", "relu"}, {"input", "normed"}}) {
    const auto other = MethodWith("para", {{key, value}});
    const auto config = other->PeftConfig(*other->MatchSites(sites), {"base", "CAUSAL_LM"});
    const absl::Status status = plain->CheckPeftConfig(config, "f");
    EXPECT_EQ(ExitCodeOf(status), 65);
    EXPECT_THAT(std::string(status.message()), HasSubstr(key + " is \"" + value));
  }
}

}  // namespace
}  // namespace graft::adapters
