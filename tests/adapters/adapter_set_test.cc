#include "adapters/adapter_set.h"

#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

using ::testing::HasSubstr;
using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

class AdapterSetTest : public ::testing::Test {
 protected:
  AdapterSetTest()
      : method_(MethodWith("lora", {{"sites", "[attn.q, ffn.down]"}, {"rank", "2"}})),
        matched_(*method_->MatchSites(ToyModel::Sites())),
        set_(*AdapterSet::Attach(*method_, matched_, AttachOptions(), table_)) {
    for (const NamedParameter& p : set_->parameters()) {
      tensors_.emplace_back(p.name, at::full_like(p.value.detach(), 0.5));
    }
  }

  std::string LoadError() {
    const auto before = set_->values().clone();
    const absl::Status status = set_->Load(tensors_);
    EXPECT_EQ(ExitCodeOf(status), 65);
    EXPECT_TRUE(at::equal(before, set_->values())) << "a failed Load must copy nothing";
    return std::string(status.message());
  }

  std::unique_ptr<Method> method_;
  std::vector<models::SiteSpec> matched_;
  models::SiteTable table_;
  std::unique_ptr<AdapterSet> set_;
  NamedTensors tensors_;
};

TEST_F(AdapterSetTest, ParametersAndGradientsAreViewsOfTheFlatBuffers) {
  EXPECT_EQ(reinterpret_cast<uintptr_t>(set_->values().data_ptr()) % 64, 0u);
  int64_t next = 0;
  for (size_t i = 0; i < set_->parameters().size(); ++i) {
    const torch::Tensor& value = set_->parameters()[i].value;
    EXPECT_EQ(set_->offset(i), next);
    EXPECT_EQ(value.data_ptr<float>(), set_->values().data_ptr<float>() + next);
    EXPECT_EQ(value.grad().data_ptr<float>(), set_->gradients().data_ptr<float>() + next);
    EXPECT_TRUE(value.is_leaf() && value.requires_grad());
    next += value.numel();
  }
  EXPECT_EQ(set_->size(), next);
}

TEST_F(AdapterSetTest, BackwardAddsIntoTheFlatGradientsAndZeroClearsThem) {
  const ToyModel toy;
  const auto batch = BatchOf({5});
  const auto x = at::randn({5, 6});
  const auto run = [&] { toy.Run(x, table_, batch, true).sum().backward(); };
  run();
  const auto once = set_->gradients().clone();
  EXPECT_GT(once.abs().max().item<float>(), 0);
  run();
  EXPECT_TRUE(at::allclose(set_->gradients(), 2 * once));
  EXPECT_EQ(set_->parameters()[0].value.grad().data_ptr(), set_->gradients().data_ptr());
  set_->ZeroGradients();
  EXPECT_EQ(set_->gradients().abs().max().item<float>(), 0);
}

TEST_F(AdapterSetTest, HooksSeeUpdatesOfTheFlatValues) {
  const ToyModel toy;
  const auto batch = BatchOf({5});
  const auto x = at::randn({5, 6});
  const auto before = toy.Run(x, table_, batch, false).detach();
  set_->values().add_(0.1);
  EXPECT_FALSE(at::allclose(before, toy.Run(x, table_, batch, false)));
}

TEST_F(AdapterSetTest, LoadPassesOverOtherStages) {
  tensors_.emplace_back("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight",
                        at::ones({2, 8}));
  ASSERT_TRUE(set_->Load(tensors_).ok());
  EXPECT_TRUE(at::equal(set_->values(), at::full_like(set_->values(), 0.5)));
}

TEST_F(AdapterSetTest, MissingTensorIsNamed) {
  tensors_.erase(tensors_.begin());
  EXPECT_THAT(LoadError(), HasSubstr("missing base_model.model.model.layers.0.self_attn.q_proj"));
}

TEST_F(AdapterSetTest, OtherShapeIsNamedWithBothShapes) {
  tensors_[0].second = at::ones({4, 6});
  EXPECT_THAT(LoadError(), HasSubstr("q_proj.lora_A.weight has shape (4, 6), the recipe and model "
                                     "give (2, 6)"));
}

TEST_F(AdapterSetTest, NonFiniteValueIsNamed) {
  tensors_[1].second[3][1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(LoadError(), HasSubstr("q_proj.lora_B.weight holds values that are not finite"));
}

TEST_F(AdapterSetTest, CheckFindsTensorsOfAnotherModule) {
  tensors_[0].first = "base_model.model.model.layers.7.mlp.other.lora_A.weight";
  const absl::Status status = CheckAdapterTensors(*method_, matched_, tensors_, "adapters/x");
  EXPECT_EQ(ExitCodeOf(status), 65);
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("adapters/x: 2 of its tensors do not fit"));
  EXPECT_THAT(message, HasSubstr("missing base_model.model.model.layers.0.self_attn.q_proj"));
  EXPECT_THAT(message, HasSubstr("extra base_model.model.model.layers.7.mlp.other"));
}

TEST(AdapterSet, StageWithoutSitesIsEmpty) {
  const auto method = MethodWith("lora", {});
  models::SiteTable table;
  const auto set = *AdapterSet::Attach(*method, {}, AttachOptions(), table);
  EXPECT_EQ(set->size(), 0);
  EXPECT_TRUE(table.empty());
  EXPECT_TRUE(set->Load({}).ok());
  set->ZeroGradients();
}

}  // namespace
}  // namespace graft::adapters
