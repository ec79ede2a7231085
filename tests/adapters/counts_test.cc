// Trainable parameters against the numbers of methods.md 13, from site lists alone.
#include <ostream>

#include <gtest/gtest.h>

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

INSTANTIATE_TEST_SUITE_P(
    Table, Counts,
    ::testing::Values(Row{"Llama-2-7B", 32, 4096, 4096, 11008, "lora", {}, 4'194'304},
                      Row{"Llama-2-7B", 32, 4096, 4096, 11008, "lora", {{"rank", "16"}}, 8'388'608},
                      Row{"Llama-2-7B", 32, 4096, 4096, 11008, "lora", kAllRank8, 19'988'480},
                      Row{"Llama-2-7B", 32, 4096, 4096, 11008, "red", {}, 262'144},
                      Row{"Llama-2-7B", 32, 4096, 4096, 11008, "red", {{"what", "bias"}}, 131'072},
                      Row{"Llama-3-8B", 32, 4096, 1024, 14336, "lora", {}, 3'407'872},
                      Row{"Llama-3-8B", 32, 4096, 1024, 14336, "lora", kAllRank8, 20'971'520},
                      Row{"SmolLM2-135M", 30, 576, 192, 1536, "lora", {}, 460'800},
                      Row{"SmolLM2-135M", 30, 576, 192, 1536, "lora", kAllRank8, 2'442'240},
                      Row{"SmolLM2-135M", 30, 576, 192, 1536, "red", {}, 34'560},
                      Row{"SmolLM2-135M", 30, 576, 192, 1536, "none", {}, 0},
                      // RoBERTa-base widths: RED++ edits five vectors of 768 a layer.
                      Row{"12 x 768", 12, 768, 768, 3072, "red", kRedPlusPlus, 92'160}));

}  // namespace
}  // namespace graft::adapters
