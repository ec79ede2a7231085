#include "adapters/site_matching.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Modules(const std::vector<models::SiteSpec>& sites) {
  std::vector<std::string> modules;
  for (const auto& site : sites) modules.push_back(site.module);
  return modules;
}

TEST(SiteMatching, RolesInModelOrderEachOnce) {
  const auto matched =
      MatchRoles({"ffn.up", "attn.q", "ffn.up"}, LinearRoles(), LlamaSites(2, 8, 4, 12));
  ASSERT_TRUE(matched.ok()) << matched.status();
  EXPECT_THAT(Modules(*matched),
              ElementsAre("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj",
                          "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"));
}

TEST(SiteMatching, AllIsEveryLinearAndNothingElse) {
  std::vector<models::Role> every = models::AllRoles();
  const auto matched = MatchRoles({"all"}, every, LlamaSites(3, 8, 4, 12));
  ASSERT_TRUE(matched.ok()) << matched.status();
  EXPECT_EQ(matched->size(), 21u);
  for (const auto& site : *matched) EXPECT_TRUE(models::IsLinear(site.id.role));
}

TEST(SiteMatching, MisspeltRoleListsTheModelsRoles) {
  const auto status = MatchRoles({"atn.q"}, LinearRoles(), LlamaSites(1, 8, 4, 12)).status();
  EXPECT_EQ(ExitCodeOf(status), 78);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("attn.q, attn.k, attn.v, attn.o, ffn.gate, ffn.up, ffn.down, all"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("did you mean `attn.q`"));
}

TEST(SiteMatching, RoleThatTheModelLacksIsAnError) {
  const auto status =
      MatchRoles({"attn.q", "cross.q"}, LinearRoles(), LlamaSites(1, 8, 4, 12)).status();
  EXPECT_EQ(ExitCodeOf(status), 78);
  EXPECT_THAT(std::string(status.message()), HasSubstr("found `cross.q`"));
}

TEST(SiteMatching, RoleThatTheMethodCannotUseIsAnError) {
  EXPECT_EQ(ExitCodeOf(MatchRoles({"ffn.out"}, LinearRoles(), LlamaSites(1, 8, 4, 12)).status()),
            78);
  EXPECT_EQ(ExitCodeOf(MatchRoles({}, LinearRoles(), LlamaSites(1, 8, 4, 12)).status()), 78);
}

TEST(SiteMatching, SelectLayersKeepsThoseAndEmbed) {
  const auto selected = SelectLayers({0, 2}, LlamaSites(3, 8, 4, 12));
  EXPECT_EQ(selected.size(), 1u + 2 * 11);
  EXPECT_EQ(selected[0].id.role, models::Role::kEmbed);
  for (const auto& site : selected) EXPECT_NE(site.id.layer, 1);
}

}  // namespace
}  // namespace graft::adapters
