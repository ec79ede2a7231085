#include "adapters/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "adapters/lora_function.h"
#include "base/status.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

using ::testing::HasSubstr;

constexpr double kScale = 0.75;

struct Case {
  explicit Case(at::ScalarType dtype, at::ScalarType master = at::kFloat) {
    at::manual_seed(11);
    x = at::randn({9, 6}).to(dtype).requires_grad_();
    y = at::randn({9, 7}).to(dtype).requires_grad_();
    a = at::randn({3, 6}).to(master).requires_grad_();
    b = at::randn({7, 3}).to(master).requires_grad_();
    dy = at::randn({9, 7}).to(dtype);
  }

  std::vector<torch::Tensor> Leaves() const { return {x, y, a, b}; }

  std::vector<torch::Tensor> Gradients(const torch::Tensor& out) const {
    for (const auto& leaf : Leaves()) leaf.mutable_grad() = torch::Tensor();
    out.backward(dy);
    std::vector<torch::Tensor> gradients;
    for (const auto& leaf : Leaves()) gradients.push_back(leaf.grad());
    return gradients;
  }

  // `* 1` makes y no leaf, as the output of a frozen linear is.
  torch::Tensor Edit(LoraEditOptions options,
                     std::shared_ptr<models::Rebuilder> rebuilder = nullptr) const {
    options.compute_dtype = x.scalar_type();
    return LoraEdit({x, std::move(rebuilder)}, y * 1, a, b, std::move(options));
  }

  torch::Tensor x, y, a, b, dy;
};

// The formula with plain autograd; `mask` (9, 6) stands for D.
torch::Tensor Plain(const Case& c, const torch::Tensor& mask) {
  const auto type = c.x.scalar_type();
  return c.y + kScale * at::mm(at::mm(c.x * mask, c.a.to(type).t()), c.b.to(type).t());
}

void ExpectGradientsNear(const Case& c, const torch::Tensor& edited, const torch::Tensor& plain,
                         double tolerance) {
  EXPECT_LT(RelativeError(edited, plain), tolerance);
  const auto got = c.Gradients(edited), expected = c.Gradients(plain);
  const char* names[] = {"dx", "dy", "dA", "dB"};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_LT(RelativeError(got[i], expected[i]), tolerance) << names[i];
  }
}

TEST(LoraEdit, EqualsPlainAutogradInFloat64) {
  const Case c(at::kDouble, at::kDouble);
  ExpectGradientsNear(c, c.Edit({kScale, std::nullopt, at::kDouble}),
                      Plain(c, at::ones({9, 6}, at::kDouble)), 1e-10);
}

TEST(LoraEdit, EqualsPlainAutogradInFloat32) {
  const Case c(at::kFloat);
  ExpectGradientsNear(c, c.Edit({kScale, std::nullopt, at::kFloat}), Plain(c, at::ones({9, 6})),
                      1e-5);
}

TEST(LoraEdit, DropoutMasksInputAndItsGradient) {
  const Case c(at::kDouble, at::kDouble);
  const auto batch = BatchOf({4, 5});
  const DropoutMask dropout(1, RandomPurpose::kAdapterDropout, {0, models::Role::kAttnQ}, 0.4,
                            batch);
  const auto mask = at::ones({9, 6}, at::kDouble);
  dropout.ApplyInPlace({mask});
  ASSERT_GT(mask.eq(0).sum().item<int64_t>(), 0);
  const auto x_before = c.x.detach().clone();
  ExpectGradientsNear(c, c.Edit({kScale, dropout, at::kDouble}), Plain(c, mask), 1e-10);
  EXPECT_TRUE(at::equal(c.x, x_before));
}

TEST(LoraEdit, BfloatGradientsOfMastersAreFloat32) {
  const Case c(at::kBFloat16);
  Case wide(at::kDouble, at::kDouble);
  wide.x = c.x.detach().to(at::kDouble).requires_grad_();
  wide.dy = c.dy.to(at::kDouble);
  // The matrices as the GEMM sees them.
  wide.a = c.a.detach().to(at::kBFloat16).to(at::kDouble).requires_grad_();
  wide.b = c.b.detach().to(at::kBFloat16).to(at::kDouble).requires_grad_();
  const auto got = c.Gradients(c.Edit({kScale, std::nullopt, at::kBFloat16}));
  const auto expected = wide.Gradients(Plain(wide, at::ones({9, 6}, at::kDouble)));
  for (const size_t i : {2u, 3u}) {
    EXPECT_EQ(got[i].scalar_type(), at::kFloat);
    EXPECT_LT(RelativeError(got[i], expected[i]), 1e-2);  // t and dt are rounded to bfloat16
    EXPECT_FALSE(at::equal(got[i], got[i].to(at::kBFloat16).to(at::kFloat)));
  }
  EXPECT_EQ(got[0].scalar_type(), at::kBFloat16);
  EXPECT_LT(RelativeError(got[0], expected[0]), 2e-2);
}

TEST(LoraEdit, Float32ComputeUnderBfloatModel) {
  const Case c(at::kBFloat16);
  const auto y = LoraEdit({c.x, nullptr}, c.y * 1, c.a, c.b, {kScale, std::nullopt, at::kFloat});
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  const auto got = c.Gradients(y);
  const auto x = c.x.detach().to(at::kFloat), dy = c.dy.to(at::kFloat);
  const auto a = c.a.detach(), b = c.b.detach();
  EXPECT_LT(RelativeError(got[2], kScale * at::mm(at::mm(dy, b).t(), x)), 1e-5);
  EXPECT_LT(RelativeError(got[3], kScale * at::mm(dy.t(), at::mm(x, a.t()))), 1e-5);
}

TEST(LoraEdit, UsesTheRebuilderOnceAndOnlyInBackward) {
  const Case c(at::kFloat);
  const auto rebuilder = std::make_shared<CountingRebuilder>(c.x.detach());
  const auto expected = c.Gradients(c.Edit({kScale, std::nullopt, at::kFloat}));
  const auto edited = c.Edit({kScale, std::nullopt, at::kFloat}, rebuilder);
  EXPECT_EQ(rebuilder->calls, 0);
  const auto got = c.Gradients(edited);
  EXPECT_EQ(rebuilder->calls, 1);
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(at::equal(got[i], expected[i]));
}

TEST(LoraEdit, WritesIntoYAndNeedsNoInputGradient) {
  const Case c(at::kFloat);
  const auto y = c.y.detach().clone();
  const auto frozen_x = c.x.detach();
  const auto edited =
      LoraEdit({frozen_x, nullptr}, y, c.a, c.b, {kScale, std::nullopt, at::kFloat});
  EXPECT_EQ(edited.data_ptr(), y.data_ptr());
  edited.backward(c.dy);
  EXPECT_FALSE(frozen_x.grad().defined());
  EXPECT_TRUE(c.a.grad().defined() && c.b.grad().defined());
}

// The gate of a row scales its edit; its gradient is <edit of the row, dy of the row>.
TEST(LoraEdit, GatesScaleRowsAndHaveGradients) {
  const Case c(at::kDouble, at::kDouble);
  const auto gate = at::tensor({1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 1.0, 2.0, 1.0}).to(at::kDouble);
  const auto edited_gate = gate.clone().requires_grad_(),
             plain_gate = gate.clone().requires_grad_();
  const auto edited = c.Edit({kScale, std::nullopt, at::kDouble, edited_gate});
  const auto plain = c.y + kScale * plain_gate.unsqueeze(1) * at::mm(at::mm(c.x, c.a.t()), c.b.t());
  ExpectGradientsNear(c, edited, plain, 1e-10);
  EXPECT_LT(RelativeError(edited_gate.grad(), plain_gate.grad()), 1e-10);
  EXPECT_TRUE(at::equal(edited[1], c.y[1])) << "a closed gate leaves the row bitwise";
}

// Scoring freezes A and B: then the gates alone carry the gradient.
TEST(LoraEdit, AGateAloneIsEnoughForGradients) {
  const Case c(at::kFloat);
  for (const auto& leaf : c.Leaves()) leaf.requires_grad_(false);
  const auto gate = at::ones({9}).requires_grad_();
  c.Edit({kScale, std::nullopt, at::kFloat, gate}).backward(c.dy);
  const auto edit = kScale * at::mm(at::mm(c.x, c.a.t()), c.b.t());
  EXPECT_LT(RelativeError(gate.grad(), (edit * c.dy).sum(1)), 1e-5);
  EXPECT_FALSE(c.a.grad().defined());
}

TEST(Lora, InitialValuesFollowTheWrittenRule) {
  const auto method = MethodWith("lora", {{"sites", "[ffn.down]"}, {"rank", "2"}});
  const std::vector<models::SiteSpec> site = {
      {{4, models::Role::kFfnDown}, "model.layers.4.mlp.down_proj", 6, 8, false}};
  AttachOptions options;
  options.seed = 21;
  const auto attachment = *method->Attach(site, options);
  const auto& a = attachment.parameters[0].value;
  const uint64_t key = PhiloxKey(21, RandomPurpose::kInit, 0, 4, 6);
  for (int64_t e = 0; e < 12; ++e) {
    const auto block = Philox(key, {static_cast<uint32_t>(e / 4), 0, 0, 0});
    const double u = (block[static_cast<size_t>(e % 4)] + 0.5) / 4294967296.0;
    EXPECT_NEAR(a.flatten()[e].item<float>(), (2 * u - 1) / std::sqrt(6.0), 1e-7);
  }
  EXPECT_EQ(attachment.parameters[1].value.abs().max().item<float>(), 0);
  EXPECT_EQ(attachment.parameters[1].name,
            "base_model.model.model.layers.4.mlp.down_proj.lora_B.weight");
}

// dropout, rank and the split leave the start of every other module alone.
TEST(Lora, InitialValuesDependOnNeitherStageNorOtherSites) {
  const auto sites = LlamaSites(3, 8, 4, 12);
  const auto method = MethodWith("lora", {{"rank", "2"}});
  const auto matched = *method->MatchSites(sites);
  const auto whole = *method->Attach(matched, AttachOptions());
  const auto part = *method->Attach({matched[4], matched[5]}, AttachOptions());
  EXPECT_TRUE(at::equal(whole.parameters[8].value, part.parameters[0].value));
  EXPECT_FALSE(at::equal(whole.parameters[0].value, part.parameters[0].value));
}

TEST(Lora, GradientsDependOnNeitherPackingNorMicroBatchesUnderDropout) {
  const ToyModel toy;
  const auto method = MethodWith("lora", {{"sites", "[all]"}, {"rank", "3"}, {"dropout", "0.5"}});
  const auto matched = *method->MatchSites(ToyModel::Sites());
  models::SiteTable table;
  const auto set = *AdapterSet::Attach(*method, matched, AttachOptions(), table);
  set->values().add_(0.2);
  const auto x = at::randn({9, 6});
  const auto gradients = [&](const std::vector<std::pair<int64_t, int64_t>>& parts) {
    set->ZeroGradients();
    for (const auto& [first, count] : parts) {
      const int64_t lengths[] = {4, 2, 3}, begins[] = {0, 4, 6};
      std::vector<int64_t> mine(lengths + first, lengths + first + count);
      const auto batch = BatchOf(mine, first);
      const auto rows = x.narrow(0, begins[first], batch.num_rows());
      toy.Run(rows, table, batch, true).square().sum().backward();
    }
    return set->gradients().clone();
  };
  const auto together = gradients({{0, 3}});
  EXPECT_LT(RelativeError(gradients({{0, 1}, {1, 1}, {2, 1}}), together), 1e-5);
  EXPECT_LT(RelativeError(gradients({{0, 2}, {2, 1}}), together), 1e-5);
  const auto batch = BatchOf({9});
  EXPECT_TRUE(at::equal(toy.Run(x, table, batch, false), toy.Run(x, table, batch, false)));
  EXPECT_FALSE(at::equal(toy.Run(x, table, batch, true), toy.Run(x, table, batch, false)));
}

TEST(Lora, RankThatDoesNotFitIsARecipeError) {
  const auto method = MethodWith("lora", {{"rank", "5"}});
  const auto status = method->MatchSites(LlamaSites(1, 8, 4, 12)).status();
  EXPECT_EQ(ExitCodeOf(status), 78);
  EXPECT_THAT(std::string(status.message()), HasSubstr("adapter.rank: found 5, at most 4 fits "
                                                       "model.layers.0.self_attn.v_proj (4 x 8)"));
}

}  // namespace
}  // namespace graft::adapters
