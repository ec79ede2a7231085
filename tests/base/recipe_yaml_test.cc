#include "base/recipe_yaml.h"

#include <cmath>

#include "tests/testing/status_matchers.h"

namespace graft {
namespace {

using testing::FailsWith;
using testing::IsOk;

struct Sample {
  bool flag = true;
  int64_t count = 3;
  double rate = 0.5;
  std::string mode = "fast";
  std::string path;
  std::vector<std::string> sites = {"attn.q", "attn.v"};
  std::vector<double> betas = {0.9, 0.999};
  int64_t inner = 1;

  void Visit(FieldVisitor& v) {
    v.Bool({"flag", "a flag"}, &flag);
    v.Int({"count", "a count"}, &count, 0, 100);
    v.Real({"rate", "a rate"}, &rate, 0.0, 1.0);
    v.Text({"mode", "a mode"}, &mode, {"fast", "slow"});
    v.Text({"path", "a path"}, &path);
    v.TextList({"sites", "some sites"}, &sites);
    v.RealList({"betas", "two rates"}, &betas, 0.0, 1.0);
    v.Begin({"nested", "a map"});
    v.Int({"inner", "a number"}, &inner, 0);
    v.End();
  }
};

VisitFunction VisitOf(Sample& sample) {
  return [&sample](FieldVisitor& visitor) { sample.Visit(visitor); };
}

absl::Status Read(const std::string& yaml, Sample* sample) {
  GRAFT_ASSIGN_OR_RETURN(const YamlNode root, ParseYaml(yaml, "r.yaml"));
  YamlReader reader(&root, "part");
  sample->Visit(reader);
  return reader.Finish();
}

TEST(YamlReader, ReadsEveryTypeAndKeepsDefaults) {
  Sample sample;
  ASSERT_THAT(Read("flag: false\ncount: 7\nrate: 1e-3\nmode: slow\npath: 123\n"
                   "sites: attn.o\nbetas: [0.5, 1]\nnested: {inner: 9}\n",
                   &sample),
              IsOk());
  EXPECT_FALSE(sample.flag);
  EXPECT_EQ(sample.count, 7);
  EXPECT_EQ(sample.rate, 1e-3);
  EXPECT_EQ(sample.mode, "slow");
  EXPECT_EQ(sample.path, "123");
  EXPECT_EQ(sample.sites, std::vector<std::string>{"attn.o"});
  EXPECT_EQ(sample.betas, (std::vector<double>{0.5, 1.0}));
  EXPECT_EQ(sample.inner, 9);
  Sample defaults;
  ASSERT_THAT(Read("nested:\n", &defaults), IsOk());
  EXPECT_EQ(ListFields(VisitOf(defaults)), [] {
    Sample fresh;
    return ListFields(VisitOf(fresh));
  }());
}

struct BadValue {
  const char* name;
  const char* yaml;
  const char* message;
};

class YamlReaderRefuses : public ::testing::TestWithParam<BadValue> {};

TEST_P(YamlReaderRefuses, NamingLineKeyFoundAllowed) {
  Sample sample;
  EXPECT_THAT(Read(GetParam().yaml, &sample), FailsWith(ErrorKind::kRecipe, GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Rows, YamlReaderRefuses,
    ::testing::Values(
        BadValue{"YamlOneYes", "flag: yes",
                 "r.yaml:1: part.flag: found `yes`, must be true or false"},
        BadValue{"QuotedBool", "flag: 'true'", "found the text \"true\""},
        BadValue{"BoolMap", "flag: {}", "found a map"},
        BadValue{"RealForInt", "\n\ncount: 3.0",
                 "r.yaml:3: part.count: found `3.0`, must be an integer from 0 to 100"},
        BadValue{"QuotedInt", "count: \"3\"", "part.count: found the text \"3\""},
        BadValue{"Octal", "count: 010", "found `010`"},
        BadValue{"OctalNegative", "count: -010", "found `-010`"},
        BadValue{"HexInt", "count: 0x10", "found `0x10`"},
        BadValue{"Sexagesimal", "count: 1:30", "found `1:30`"},
        BadValue{"IntRange", "count: 101", "found `101`, must be an integer from 0 to 100"},
        BadValue{"IntOverflow", "count: 99999999999999999999", "must be an integer"},
        BadValue{"IntNull", "count:", "found nothing, must be an integer"},
        BadValue{"Nan", "rate: nan", "found `nan`, must be a number from 0.0 to 1.0"},
        BadValue{"YamlNan", "rate: .nan", "found `.nan`"},
        BadValue{"Infinity", "rate: inf", "found `inf`"},
        BadValue{"Negative", "rate: -1", "found `-1`"},
        BadValue{"Overflow", "rate: 1e400", "found `1e400`"},
        BadValue{"Choice", "mode: fasst",
                 "found `fasst`, must be one of fast, slow; did you mean `fast`?"},
        BadValue{"ListForText", "path: [a]", "part.path: found a list of 1, must be text"},
        BadValue{"MapInList", "sites: [{a: 1}]", "part.sites: found a map, must be text"},
        BadValue{"TextInReals", "betas: [0.9, x]", "part.betas: found `x`"},
        BadValue{"UnknownKey", "cuont: 3",
                 "r.yaml:1: part.cuont: unknown key; did you mean `count`?"},
        BadValue{"UnknownNested", "nested: {outer: 3}", "part.nested.outer: unknown key"},
        BadValue{"ScalarForMap", "nested: 3", "part.nested: found `3`, must be a map"},
        BadValue{"ScalarOnTop", "3", "part: found `3`, must be a map"}),
    [](const auto& row) { return row.param.name; });

TEST(YamlReader, AcceptedKeysAreNotUnknown) {
  const YamlNode root = *ParseYaml("extra: 1\n", "r.yaml");
  YamlReader reader(&root, "part");
  EXPECT_FALSE(reader.HasAsked("extra"));
  EXPECT_EQ(reader.Accept("extra"), "r.yaml:1");
  EXPECT_EQ(reader.Accept("other"), "");
  EXPECT_THAT(reader.Finish(), IsOk());
}

TEST(ApplyOverride, ReplacesAddsAndNests) {
  YamlNode root = *ParseYaml("a: {x: 1}\n", "r.yaml");
  ASSERT_THAT(ApplyOverride("a.x=[1, two]", &root), IsOk());
  ASSERT_THAT(ApplyOverride("b.deep.key=v=w", &root), IsOk());
  EXPECT_EQ(root.Find("a")->Find("x")->items[1].text, "two");
  EXPECT_EQ(root.Find("b")->Find("deep")->Find("key")->text, "v=w");
  EXPECT_EQ(root.Find("b")->Find("deep")->Find("key")->origin, "command line");
  YamlNode empty = *ParseYaml("", "r.yaml");
  ASSERT_THAT(ApplyOverride("a.b=", &empty), IsOk());
  EXPECT_EQ(empty.Find("a")->Find("b")->kind, YamlNode::Kind::kNull);
}

TEST(ApplyOverride, RefusesOtherForms) {
  YamlNode root = *ParseYaml("a: 3\n", "r.yaml");
  for (const char* text : {"a.b", "a=1", "=1", ".b=1", "a.=1", "a..b=1", ""}) {
    EXPECT_THAT(ApplyOverride(text, &root),
                FailsWith(ErrorKind::kUsage, "must be section.key=value"));
  }
  EXPECT_THAT(ApplyOverride("a.b=1", &root),
              FailsWith(ErrorKind::kRecipe, "r.yaml:1: a: found `3`"));
  EXPECT_THAT(ApplyOverride("c.d=[1", &root), FailsWith(ErrorKind::kRecipe, "c.d: command line"));
}

TEST(YamlOf, PrintsCanonicallyAndReadsBack) {
  Sample sample;
  sample.rate = 1e-8;
  sample.path = "a dir/with: \"odd\" #things\n";
  sample.sites = {"null", "- x", "caf\xC3\xA9"};
  const FieldList fields = ListFields(VisitOf(sample));
  EXPECT_EQ(YamlOf(fields),
            "flag: true\ncount: 3\nrate: 1e-08\nmode: fast\n"
            "path: \"a dir/with: \\\"odd\\\" #things\\n\"\n"
            "sites: [\"null\", \"- x\", \"caf\xC3\xA9\"]\nbetas: [0.9, 0.999]\n"
            "nested:\n  inner: 1\n");
  Sample back;
  ASSERT_THAT(ReadFieldList(fields, "list", VisitOf(back)), IsOk());
  EXPECT_EQ(ListFields(VisitOf(back)), fields);
  EXPECT_EQ(back.path, sample.path);
}

TEST(HelpOf, ShowsKeyDefaultRangeMeaning) {
  Sample sample;
  const std::string help = HelpOf("part", VisitOf(sample));
  EXPECT_THAT(help, ::testing::HasSubstr("  part.count = 3  (from 0 to 100)\n      a count\n"));
  EXPECT_THAT(help, ::testing::HasSubstr("  part.mode = fast  (fast | slow)\n"));
  EXPECT_THAT(help, ::testing::HasSubstr("  part.path = unset\n"));
  EXPECT_THAT(help, ::testing::HasSubstr("  part.nested.inner = 1  (at least 0)\n"));
}

}  // namespace
}  // namespace graft
