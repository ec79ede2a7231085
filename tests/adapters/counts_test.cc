// Trainable parameters against the numbers of methods.md 13, from site lists alone.
#include <ostream>
#include <tuple>

#include <gtest/gtest.h>

#include "base/status.h"
#include "models/backbone.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

struct Row {
  const char* model;
  int layers;
  int64_t d, dkv, f;
  const char* method;
  FieldList fields;
  int64_t expected;
};

void PrintTo(const Row& row, std::ostream* out) {
  *out << row.model << " " << row.method << " " << row.expected;
}

class Counts : public ::testing::TestWithParam<Row> {};

TEST_P(Counts, EqualTheTable) {
  const Row& row = GetParam();
  const auto method = MethodWith(row.method, row.fields);
  const auto matched = method->MatchSites(LlamaSites(row.layers, row.d, row.dkv, row.f));
  ASSERT_TRUE(matched.ok()) << matched.status();
  EXPECT_EQ(method->CountParameters(*matched), row.expected);
}

const FieldList kAllRank8 = {{"sites", "[all]"}, {"rank", "8"}};
const FieldList kRedPlusPlus = {{"sites", "[attn.q, attn.k, attn.v, attn.out, ffn.out]"}};

// RoBERTa-large widths.
Row LopaOfLength(int rows, int64_t expected) {
  return {"24 x 1024", 24, 1024, 1024, 4096, "lopa", {{"prompt_length", std::to_string(rows)}},
          expected};
}

INSTANTIATE_TEST_SUITE_P(
    Table, Counts,
    ::testing::Values(
        Row{"Llama-2-7B", 32, 4096, 4096, 11008, "lora", {}, 4'194'304},
        Row{"Llama-2-7B", 32, 4096, 4096, 11008, "lora", {{"rank", "16"}}, 8'388'608},
        Row{"Llama-2-7B", 32, 4096, 4096, 11008, "lora", kAllRank8, 19'988'480},
        Row{"Llama-2-7B", 32, 4096, 4096, 11008, "red", {}, 262'144},
        Row{"Llama-2-7B", 32, 4096, 4096, 11008, "red", {{"what", "bias"}}, 131'072},
        Row{"Llama-2-7B", 32, 4096, 4096, 11008, "ia3", {}, 614'400},
        Row{"Llama-3-8B", 32, 4096, 1024, 14336, "ia3", {}, 524'288},
        Row{"SmolLM2-135M", 30, 576, 192, 1536, "ia3", {}, 57'600},
        Row{"12 x 768", 12, 768, 768, 3072, "ia3", {}, 55'296},
        Row{"24 x 1024", 24, 1024, 1024, 4096, "ia3", {}, 147'456},
        Row{"Llama-3-8B", 32, 4096, 1024, 14336, "lora", {}, 3'407'872},
        Row{"Llama-3-8B", 32, 4096, 1024, 14336, "lora", kAllRank8, 20'971'520},
        Row{"SmolLM2-135M", 30, 576, 192, 1536, "lora", {}, 460'800},
        Row{"SmolLM2-135M", 30, 576, 192, 1536, "lora", kAllRank8, 2'442'240},
        Row{"SmolLM2-135M", 30, 576, 192, 1536, "red", {}, 34'560},
        Row{"SmolLM2-135M", 30, 576, 192, 1536, "none", {}, 0},
        // methods.md 13: defaults.
        Row{"Llama-2-7B", 32, 4096, 4096, 11008, "para", {}, 8'945'664},
        Row{"Llama-3-8B", 32, 4096, 1024, 14336, "para", {}, 9'043'968},
        Row{"SmolLM2-135M", 30, 576, 192, 1536, "para", {}, 1'036'800},
        Row{"12 x 768", 12, 768, 768, 3072, "para", {}, 774'144},
        Row{"24 x 1024", 24, 1024, 1024, 4096, "para", {}, 2'064'384},
        Row{"Llama-2-13B", 40, 5120, 5120, 13824, "para", {}, 14'008'320},
        Row{"Gemma-2B", 18, 2048, 256, 16384, "para", {}, 4'478'976},
        Row{"Llama-2-7B", 32, 4096, 4096, 11008, "para", {{"bias", "true"}}, 9'560'448},
        Row{"Llama-2-7B",
            32,
            4096,
            4096,
            11008,
            "para",
            {{"pooling", "attention"}, {"activation", "rational"}},
            8'945'664 + 32 * (4096 + 10)},
        Row{"Llama-2-7B", 32, 4096, 4096, 11008, "prompt_tuning", {}, 40'960},
        Row{"SmolLM2-135M", 30, 576, 192, 1536, "prompt_tuning", {}, 5'760},
        Row{"24 x 1024", 24, 1024, 1024, 4096, "prompt_tuning", {}, 10'240},
        Row{"Llama-2-7B", 32, 4096, 4096, 11008, "idpg", {}, 11'575'552},
        Row{"SmolLM2-135M", 30, 576, 192, 1536, "idpg", {}, 1'628'032},
        Row{"12 x 768", 12, 768, 768, 3072, "idpg", {}, 2'170'624},
        Row{"24 x 1024", 24, 1024, 1024, 4096, "idpg", {}, 2'894'080},
        Row{"Llama-2-7B", 32, 4096, 4096, 11008, "lopa", {}, 6'359'592},
        Row{"SmolLM2-135M", 30, 576, 192, 1536, "lopa", {}, 903'592},
        Row{"12 x 768", 12, 768, 768, 3072, "lopa", {}, 1'201'192},
        Row{"24 x 1024", 24, 1024, 1024, 4096, "lopa", {}, 1'597'992},
        Row{"24 x 1024", 24, 1024, 1024, 4096, "lopa", {{"rank", "1"}}, 800'778},
        Row{"24 x 1024", 24, 1024, 1024, 4096, "lopa", {{"rank", "2"}}, 1'066'516},
        LopaOfLength(5, 1'587'732), LopaOfLength(25, 1'628'772), LopaOfLength(50, 1'680'072),
        LopaOfLength(100, 1'782'672),
        // RoBERTa-base widths: RED++ edits five vectors of 768 a layer.
        Row{"12 x 768", 12, 768, 768, 3072, "red", kRedPlusPlus, 92'160}));

// T5-base: roles differ between the stacks, so its own sites.
TEST(CountsOfT5Base, EqualTheTable) {
  const auto sites = models::ListSites(ValueOrThrow(models::NamedShape("t5-base")));
  const std::tuple<const char*, FieldList, int64_t> rows[] = {
      {"lora", {}, 589'824},
      {"lora", kAllRank8, 3'244'032},
      {"lora", {{"sites", "[attn.q, attn.v, cross.q, cross.v]"}, {"rank", "8"}}, 884'736},
      {"ia3", {}, 110'592},
      {"ia3", {{"sites", "[attn.k, attn.v, ffn.down, cross.k, cross.v]"}}, 129'024},
      {"red", {}, 36'864},
      {"para", {}, 1'548'288},
      {"prompt_tuning", {}, 7'680},
      {"prompt_tuning", {{"prompt_length", "100"}}, 76'800},
      {"idpg", {}, 2'170'624},
      {"lopa", {}, 1'201'192}};
  for (const auto& [name, fields, expected] : rows) {
    const auto method = MethodWith(name, fields);
    const auto matched = method->MatchSites(sites);
    ASSERT_TRUE(matched.ok()) << name << ": " << matched.status();
    EXPECT_EQ(method->CountParameters(*matched), expected) << name;
  }
}

// SmolLM2-135M, one layer: what edits keep of a row for the backward pass.
TEST(KeptPerRow, OfALayersEdits) {
  const std::tuple<const char*, FieldList, int64_t> rows[] = {
      {"lora", kAllRank8, 7 * 8},
      {"lora", {{"rank", "16"}}, 2 * 16},
      {"red", {}, 576},
      {"red", kRedPlusPlus, 576 + 2 * 192 + 2 * 576},
      {"red", {{"what", "bias"}}, 0},
      {"ia3", {}, 2 * 192},  // the input of ffn.down is rebuilt
      {"para", {}, 576 + 192},
      {"prompt_tuning", {}, 0}};
  for (const auto& [name, fields, expected] : rows) {
    const auto method = MethodWith(name, fields);
    const auto matched = method->MatchSites(LlamaSites(1, 576, 192, 1536));
    ASSERT_TRUE(matched.ok()) << name << ": " << matched.status();
    int64_t kept = 0;
    for (const models::SiteSpec& site : *matched) kept += method->KeptPerRow(site);
    EXPECT_EQ(kept, expected) << name;
  }
}

}  // namespace
}  // namespace graft::adapters
