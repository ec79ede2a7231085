#include "adapters/ia3.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

// methods.md 4: ffn.down scales its input, the others their output after the bias.
TEST(Ia3, IsItsFormula) {
  ToyModel toy;
  toy.linears[models::Role::kAttnV].bias = at::randn({6});
  const auto method = MethodWith("ia3", {{"sites", "[attn.v, ffn.down]"}});
  models::SiteTable table;
  const auto set = *AdapterSet::Attach(*method, *method->MatchSites(ToyModel::Sites()), {}, table);
  at::NoGradGuard no_grad;
  for (const NamedParameter& p : set->parameters()) p.value.copy_(at::randn_like(p.value));
  const auto l_v = set->parameters()[0].value.view(-1), l_f = set->parameters()[1].value.view(-1);

  const auto x = at::randn({7, 6});
  const auto linear = [&](models::Role role, const torch::Tensor& in) {
    const ToyModel::Linear& at_role = toy.linears[role];
    const auto y = at::mm(in, at_role.weight.t());
    return at_role.bias.defined() ? y + at_role.bias : y;
  };
  const auto v = l_v * linear(models::Role::kAttnV, x);
  const auto up = linear(models::Role::kFfnUp, x + v);
  const auto down = linear(models::Role::kFfnDown, l_f * up);
  const auto expected = linear(models::Role::kAttnQ, x) + at::mm(down, toy.out.t());
  EXPECT_LT(RelativeError(toy.Run(x, table, BatchOf({7}), true), expected), 1e-5);
}

TEST(Ia3, WritesPeftsKeys) {
  const auto method = MethodWith("ia3", {});
  const auto config =
      method->PeftConfig(*method->MatchSites(LlamaSites(1, 8, 4, 12)), {"base", "CAUSAL_LM"});
  EXPECT_EQ(config.at("peft_type"), "IA3");
  EXPECT_EQ(config.at("feedforward_modules"),
            nlohmann::json::array({"model.layers.0.mlp.down_proj"}));
  EXPECT_EQ(config.at("target_modules").size(), 3u);
}

// An ffn.down that scaled its output would have the shape (out, 1).
TEST(Ia3, AFolderThatScalesTheOtherSideIsRefused) {
  const auto method = MethodWith("ia3", {{"sites", "[ffn.down]"}});
  const auto matched = *method->MatchSites(LlamaSites(1, 8, 4, 12));
  const auto status = CheckAdapterTensors(
      *method, matched, {{method->Parameters(matched)[0].name, at::ones({8, 1})}}, "folder");
  EXPECT_EQ(ExitCodeOf(status), 65);
}

TEST(Ia3, HiddenStatesAreNoPlaces) {
  const auto method = MethodWith("ia3", {{"sites", "[ffn.out]"}});
  EXPECT_EQ(ExitCodeOf(method->MatchSites(LlamaSites(1, 8, 4, 12)).status()), 78);
}

}  // namespace
}  // namespace graft::adapters
