#include "base/yaml_tree.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/testing/status_matchers.h"

namespace graft {
namespace {

using testing::FailsWith;
using testing::IsOk;

TEST(ParseYaml, KeepsOrderTextAndLines) {
  const absl::StatusOr<YamlNode> root =
      ParseYaml("b: 010\na: {x: 'no', y: [1, ~]}\nc:\n", "r.yaml");
  ASSERT_THAT(root, IsOk());
  ASSERT_EQ(root->fields.size(), 3u);
  EXPECT_EQ(root->fields[0].name, "b");
  EXPECT_EQ(root->Find("b")->text, "010");
  EXPECT_EQ(root->Find("b")->origin, "r.yaml:1");
  EXPECT_FALSE(root->Find("b")->quoted);
  EXPECT_TRUE(root->Find("a")->Find("x")->quoted);
  EXPECT_EQ(root->Find("a")->Find("y")->items[1].kind, YamlNode::Kind::kNull);
  EXPECT_EQ(root->Find("c")->kind, YamlNode::Kind::kNull);
  EXPECT_EQ(root->Find("d"), nullptr);
}

TEST(ParseYaml, ExpandsAliases) {
  const absl::StatusOr<YamlNode> root = ParseYaml("a: &x [1, 2]\nb: *x\n", "r.yaml");
  ASSERT_THAT(root, IsOk());
  EXPECT_EQ(root->Find("b")->items[1].text, "2");
}

// Ten lists of ten aliases each of the one before: 10^10 nodes.
std::string AliasBomb() {
  std::string text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 10; ++i) {
    const std::vector<std::string> aliases(10, absl::StrCat("*a", i - 1));
    absl::StrAppend(&text, "a", i, ": &a", i, " [", absl::StrJoin(aliases, ", "), "]\n");
  }
  return text;
}

struct BadYaml {
  const char* name;
  std::string text;
  const char* message;
};

class ParseYamlRefuses : public ::testing::TestWithParam<BadYaml> {};

TEST_P(ParseYamlRefuses, WithFileAndReason) {
  const absl::StatusOr<YamlNode> root = ParseYaml(GetParam().text, "r.yaml");
  EXPECT_THAT(root, FailsWith(ErrorKind::kRecipe, GetParam().message));
  EXPECT_THAT(root, FailsWith(ErrorKind::kRecipe, "r.yaml:"));
}

std::string Repeat(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

INSTANTIATE_TEST_SUITE_P(
    Rows, ParseYamlRefuses,
    ::testing::Values(
        BadYaml{"AliasBomb", AliasBomb(), "more than 10000 nodes"},
        BadYaml{"ManyNodes", "a: [" + Repeat("1,", 10'000) + "]", "more than 10000 nodes"},
        BadYaml{"AliasInsideItself", "a: &x [1, *x]", "alias"},
        BadYaml{"UnknownAlias", "a: *x", "r.yaml:1"},
        BadYaml{"DuplicateKey", "a: 1\nb:\n  c: 1\n  c: 2\n",
                "r.yaml:4: b.c: this key occurs twice"},
        BadYaml{"FlowDepth", "a: " + Repeat("[", 100) + Repeat("]", 100), "deeper than 32"},
        BadYaml{"FlowDepthOpen", Repeat("[", 500'000), "r.yaml:1"},
        BadYaml{"MapDepthOpen", Repeat("{a: ", 200'000), "r.yaml:1"},
        BadYaml{"BlockDepth", Repeat("- ", 10'000) + "a", "deeper than 32"},
        BadYaml{"DepthThroughAlias",
                "a: &x " + Repeat("[", 20) + Repeat("]", 20) + "\nb: " + Repeat("[", 20) + "*x" +
                    Repeat("]", 20),
                "deeper than 32"},
        BadYaml{"Tag", "a: !!int 3", "the tag tag:yaml.org,2002:int"},
        BadYaml{"LocalTag", "a: !x 3", "the tag !x"},
        BadYaml{"MapTag", "a: !!map {b: 1}", "the tag"},
        BadYaml{"ListAsKey", "[a, b]: 1", "a list or map as a key"},
        BadYaml{"AliasAsKey", "a: &x b\n*x : 1", "an alias as a key"},
        BadYaml{"TwoDocuments", "a: 1\n---\nb: 2\n", "second document"},
        BadYaml{"Tabs", "a:\n\tb: 1\n", "not valid YAML"},
        BadYaml{"Open", "a: [1, 2", "not valid YAML"},
        BadYaml{"Nul", std::string("a: \0", 4), "UTF-8"},
        BadYaml{"NulEscape", "a: \"x\\0\"", "NUL"}, BadYaml{"Latin1", "a: \xE9", "UTF-8"},
        BadYaml{"TooLarge", "a: " + std::string(1 << 20, 'x'), "at most 1048576"}),
    [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace graft
