#include "adapters/red.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "adapters/vector_edit.h"
#include "base/status.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

using ::testing::HasSubstr;

TEST(VectorEdit, EqualsPlainAutogradInFloat64) {
  at::manual_seed(4);
  const auto h = at::randn({9, 5}, at::kDouble).requires_grad_();
  const auto s = at::randn({5}, at::kDouble).requires_grad_();
  const auto beta = at::randn({5}, at::kDouble).requires_grad_();
  const auto g = at::randn({9, 5}, at::kDouble);
  for (const int what : {0, 1, 2}) {
    const torch::Tensor scale = what == 1 ? torch::Tensor() : s;
    const torch::Tensor bias = what == 2 ? torch::Tensor() : beta;
    const auto run = [&](const torch::Tensor& out) {
      for (const auto& leaf : {h, s, beta}) leaf.mutable_grad() = torch::Tensor();
      out.backward(g);
      return std::vector<torch::Tensor>{h.grad(), s.grad(), beta.grad()};
    };
    auto plain = what == 1 ? h * 1 : h * s;
    if (bias.defined()) plain = plain + beta;
    const auto edited = VectorEdit(h * 1, scale, bias, /*in_place=*/what == 1);
    EXPECT_LT(RelativeError(edited, plain), 1e-14);
    const auto got = run(edited), expected = run(plain);
    for (size_t i = 0; i < 3; ++i) {
      ASSERT_EQ(got[i].defined(), expected[i].defined()) << what << " " << i;
      if (got[i].defined()) {
        EXPECT_LT(RelativeError(got[i], expected[i]), 1e-12);
      }
    }
  }
}

TEST(VectorEdit, BfloatIsRoundedOnceAndSumsAreFloat32) {
  at::manual_seed(4);
  const auto h = at::randn({400, 5}).to(at::kBFloat16);
  const auto s = (1 + 0.3 * at::randn({5})).requires_grad_();
  const auto beta = at::randn({5}).requires_grad_();
  const auto g = at::randn({400, 5}).to(at::kBFloat16);
  const auto edited = VectorEdit(h, s, beta, false);
  EXPECT_TRUE(at::equal(edited, (h.to(at::kFloat) * s + beta).to(at::kBFloat16)));
  edited.backward(g);
  const auto wide_g = g.to(at::kDouble);
  EXPECT_LT(RelativeError(s.grad(), (wide_g * h.to(at::kDouble)).sum(0)), 1e-5);
  EXPECT_LT(RelativeError(beta.grad(), wide_g.sum(0)), 1e-5);
}

TEST(VectorEdit, HiddenStatesAreNotOverwritten) {
  const auto h = at::randn({4, 3});
  const auto before = h.clone();
  VectorEdit(h, torch::Tensor(), at::ones({3}), /*in_place=*/false);
  VectorEdit(h, at::full({3}, 2.0), torch::Tensor(), /*in_place=*/false);
  EXPECT_TRUE(at::equal(h, before));
}

// methods.md 1.1: the trap of the reference code, whose bfloat16 scales stayed at 1.
TEST(Red, ScalesMoveUnderABfloatModel) {
  const ToyModel toy(at::kBFloat16);
  const auto method = MethodWith("red", {});
  models::SiteTable table;
  AttachOptions options;
  options.model_dtype = at::kBFloat16;
  options.compute_dtype = at::kBFloat16;
  const auto set =
      *AdapterSet::Attach(*method, *method->MatchSites(ToyModel::Sites()), options, table);
  const auto batch = BatchOf({16});
  at::manual_seed(5);
  const auto x = at::randn({16, 6}).to(at::kBFloat16);
  const auto target = at::randn({16, 5}).to(at::kBFloat16);
  const double lr = 1e-3, beta1 = 0.9, beta2 = 0.999;
  auto m = at::zeros_like(set->values()), v = at::zeros_like(set->values());
  for (int step = 1; step <= 20; ++step) {
    set->ZeroGradients();
    (toy.Run(x, table, batch, true) - target).square().sum().backward();
    const auto& g = set->gradients();
    m.mul_(beta1).add_(g, 1 - beta1);
    v.mul_(beta2).addcmul_(g, g, 1 - beta2);
    const auto m_hat = m / (1 - std::pow(beta1, step)), v_hat = v / (1 - std::pow(beta2, step));
    set->values().sub_(lr * m_hat / (v_hat.sqrt() + 1e-8));
  }
  const auto moved = (set->parameters()[0].value.detach() - 1).abs();
  EXPECT_EQ(set->parameters()[0].name, "base_model.model.model.layers.0.mlp.down_proj.red_scale");
  EXPECT_GE(moved.gt(0).to(at::kFloat).mean().item<double>(), 0.99);
  EXPECT_GE(moved.max().item<double>(), 5e-3);
}

TEST(Red, OnePlaceUnderTwoNamesIsARecipeError) {
  const auto method = MethodWith("red", {{"sites", "[ffn.down, ffn.out]"}});
  const auto status = method->MatchSites(LlamaSites(1, 8, 4, 12)).status();
  EXPECT_EQ(ExitCodeOf(status), 78);
  EXPECT_THAT(std::string(status.message()), HasSubstr("ffn.down and ffn.out"));
}

TEST(Red, EmbedAndLayerInAreNoPlacesOfRed) {
  for (const char* sites : {"[embed]", "[layer.in]"}) {
    const auto method = MethodWith("red", {{"sites", sites}});
    EXPECT_EQ(ExitCodeOf(method->MatchSites(LlamaSites(1, 8, 4, 12)).status()), 78) << sites;
  }
}

TEST(Red, MergeSaysWhereABiasAppears) {
  const auto sites = LlamaSites(1, 8, 4, 12);
  const models::SiteSpec* ffn_out = nullptr;
  const models::SiteSpec* layer_out = nullptr;
  for (const auto& site : sites) {
    if (site.id.role == models::Role::kFfnOut) ffn_out = &site;
    if (site.id.role == models::Role::kLayerOut) layer_out = &site;
  }
  EXPECT_TRUE(MethodWith("red", {})->MergeAddsBias(*ffn_out));
  EXPECT_TRUE(MethodWith("red", {{"what", "bias"}})->MergeAddsBias(*ffn_out));
  EXPECT_FALSE(MethodWith("red", {{"what", "scale"}})->MergeAddsBias(*ffn_out));
  EXPECT_FALSE(MethodWith("red", {})->MergeAddsBias(*layer_out));
}

}  // namespace
}  // namespace graft::adapters
