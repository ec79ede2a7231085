#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "adapters/adapter.h"
#include "base/status.h"

namespace graft::adapters {
namespace {

using ::testing::HasSubstr;

TEST(Registry, MakesEveryMethodItNames) {
  EXPECT_THAT(MethodNames(), ::testing::ElementsAre("fanlora", "full", "ia3", "idpg", "lopa", "lora",
                                                    "none", "para", "prompt_tuning", "red"));
  for (const std::string& name : MethodNames()) {
    EXPECT_EQ((*NewMethod(name))->name(), name);
  }
}

TEST(Registry, UnknownNameIsARecipeErrorThatListsTheNames) {
  const absl::Status status = NewMethod("loar").status();
  EXPECT_EQ(ExitCodeOf(status), 78);
  EXPECT_THAT(std::string(status.message()), HasSubstr("adapter.method: found `loar`"));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("fanlora, full, ia3, idpg, lopa, lora, none, para, prompt_tuning, red"));
}

}  // namespace
}  // namespace graft::adapters
