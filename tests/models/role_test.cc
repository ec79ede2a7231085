#include "models/role.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace graft::models {
namespace {

TEST(RoleTest, EveryNameComesBack) {
  for (const Role role : AllRoles()) EXPECT_EQ(ParseRole(RoleName(role)), role);
  EXPECT_EQ(ParseRole("attn.x"), std::nullopt);
  EXPECT_EQ(ParseRole(""), std::nullopt);
}

TEST(RoleTest, FixedOrderOfTheDesign) {
  std::vector<std::string> names;
  for (const Role role : AllRoles()) names.push_back(RoleName(role));
  EXPECT_THAT(
      names, ::testing::ElementsAre("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up",
                                    "ffn.down", "cross.q", "cross.k", "cross.v", "cross.o", "embed",
                                    "layer.in", "attn.out", "ffn.out", "layer.out", "head"));
}

TEST(RoleTest, LinearsAreNotHiddenStates) {
  EXPECT_TRUE(IsLinear(Role::kAttnQ));
  EXPECT_TRUE(IsLinear(Role::kCrossO));
  EXPECT_FALSE(IsLinear(Role::kEmbed));
  EXPECT_FALSE(IsLinear(Role::kAttnOut));
}

TEST(RoleTest, SitesSortByLayerThenRole) {
  EXPECT_LT((SiteId{0, Role::kLayerOut}), (SiteId{1, Role::kAttnQ}));
  EXPECT_LT((SiteId{1, Role::kAttnQ}), (SiteId{1, Role::kFfnDown}));
}

}  // namespace
}  // namespace graft::models
