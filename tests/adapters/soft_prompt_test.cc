#include "adapters/soft_prompt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

using ::testing::HasSubstr;

// Two samples that begin with 2 virtual rows each and, in generation, one that goes on.
models::MicroBatch Mixed() {
  models::MicroBatch batch;
  batch.segments = {{1, 0, 5, 2, 2}, {2, 5, 1, 0, 0}, {3, 6, 3, 1, 2}};
  return batch;
}

TEST(FillVirtualRows, PutsEachSamplesRowsAndTheirGradients) {
  const auto segments = SegmentsToFill(Mixed());
  ASSERT_EQ(segments.size(), 2u);
  const auto h = at::randn({9, 4}).requires_grad_();
  const auto z = at::randn({2, 2, 4}).requires_grad_();
  const auto filled = FillVirtualRows(h, z, segments);
  auto expected = h.detach().clone();
  expected.narrow(0, 0, 2).copy_(z[0]);
  expected.narrow(0, 6, 2).copy_(z[1]);
  EXPECT_TRUE(at::equal(filled, expected));
  const auto g = at::randn({9, 4});
  filled.backward(g);
  EXPECT_TRUE(at::equal(z.grad()[0], g.narrow(0, 0, 2)));
  EXPECT_TRUE(at::equal(z.grad()[1], g.narrow(0, 6, 2)));
  auto text = g.clone();
  text.narrow(0, 0, 2).zero_();
  text.narrow(0, 6, 2).zero_();
  EXPECT_TRUE(at::equal(h.grad(), text));
}

TEST(FillVirtualRows, OnePromptForAllSumsItsGradient) {
  const auto h = at::randn({9, 4});
  const auto before = h.clone();
  const auto z = at::randn({1, 2, 4}).requires_grad_();
  const auto filled = FillVirtualRows(h, z, SegmentsToFill(Mixed()));
  const auto g = at::randn({9, 4});
  filled.backward(g);
  EXPECT_LT(RelativeError(z.grad()[0], g.narrow(0, 0, 2) + g.narrow(0, 6, 2)), 1e-6);
  EXPECT_TRUE(at::equal(h, before));
}

TEST(FillVirtualRows, RoundsOnceToTheModelsType) {
  const auto z = at::randn({1, 2, 4});
  const auto filled = FillVirtualRows(at::zeros({9, 4}, at::kBFloat16), z, SegmentsToFill(Mixed()));
  EXPECT_TRUE(at::equal(filled.narrow(0, 0, 2), z[0].to(at::kBFloat16)));
}

TEST(InitialPrompt, FromVocabTakesEmbeddingsOfDrawnTokens) {
  AttachOptions options;
  options.seed = 5;
  options.vocab_size = 7;
  const auto table = at::randn({7, 3});
  std::vector<int64_t> drawn;
  options.word_embeddings = [&](const std::vector<int64_t>& ids) {
    drawn = ids;
    return table.index_select(0, at::tensor(ids));
  };
  const models::SiteSpec embed = {{2, models::Role::kEmbed}, "model.embed_tokens", 3, 3, false};
  const auto prompt = InitialPrompt(options, embed, 200, /*from_vocab=*/true);
  ASSERT_EQ(drawn.size(), 200u);
  EXPECT_TRUE(at::equal(prompt, table.index_select(0, at::tensor(drawn))));
  EXPECT_TRUE(prompt.requires_grad() && prompt.is_leaf());
  std::vector<int64_t> sorted = drawn;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(sorted.front(), 0);
  EXPECT_EQ(sorted.back(), 6);
}

TEST(InitialPrompt, RandomIsStandardNormal) {
  const models::SiteSpec embed = {{2, models::Role::kEmbed}, "model.embed_tokens", 50, 50, false};
  const auto prompt = InitialPrompt(AttachOptions(), embed, 100, /*from_vocab=*/false);
  EXPECT_NEAR(prompt.mean().item<double>(), 0.0, 0.05);
  EXPECT_NEAR(prompt.std().item<double>(), 1.0, 0.05);
}

TEST(SoftPrompts, AnEncoderNeedsAllItsKeysOrNone) {
  const auto opened = [](const char* name, const FieldList& fields) {
    const auto method = *NewMethod(name);
    const absl::Status read =
        ReadFieldList(fields, "test", [&](FieldVisitor& v) { method->VisitFields(v); });
    return read.ok() ? method->Open({}) : read;
  };
  for (const char* name : {"idpg", "lopa"}) {
    EXPECT_TRUE(opened(name, {}).ok());
    for (const auto& [fields, part] : std::vector<std::pair<FieldList, const char*>>{
             {{{"encoder", "{type: model}"}}, "adapter.encoder.path: absent"},
             {{{"encoder", "{path: somewhere}"}}, "belong to type model"},
             {{{"encoder", "{pool: mean}"}}, "belong to type model"},
             {{{"encoder", "{train: true}"}}, "belong to type model"},
             {{{"encoder", "{type: other}"}}, "embedding_mean, model"},
             {{{"encoder", "{pool: max}"}}, "first, mean, last"}}) {
      const absl::Status status = opened(name, fields);
      EXPECT_EQ(ExitCodeOf(status), 78) << part;
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  }
}

// Another encoder computes other vectors; one that is trained is in the folder.
TEST(SoftPrompts, AFolderOfAnotherEncoderIsRefused) {
  const auto sites = LlamaSites(1, 8, 4, 12);
  const auto with = [](const char* fingerprint, const char* fields) {
    auto method = *NewMethod("lopa");
    ThrowIfError(ReadFieldList({{"encoder", fields}}, "test",
                               [&](FieldVisitor& v) { method->VisitFields(v); }));
    ModelFacts facts;
    facts.read_encoder = [fingerprint](const std::string&) -> absl::StatusOr<EncoderFacts> {
      return EncoderFacts{fingerprint, 6, 10, 20, {{"roberta.w", {2, 3}, 0}}};
    };
    ThrowIfError(method->Open(facts));
    return method;
  };
  const auto ours = with("aa", "{type: model, path: p}");
  const auto other = with("bb", "{type: model, path: q}");
  const auto matched = *ours->MatchSites(sites);
  const auto config = other->PeftConfig(matched, {"base", "CAUSAL_LM"});
  EXPECT_THAT(std::string(ours->CheckPeftConfig(config, "f").message()),
              HasSubstr("f: encoder: fingerprint is \"bb\""));
  EXPECT_TRUE(other->CheckPeftConfig(config, "f").ok());
  EXPECT_THAT(std::string(MethodWith("lopa", {})->CheckPeftConfig(config, "f").message()),
              HasSubstr("type is \"model\""));
  // The heads read e of its width, and its weights come last when they are trained.
  EXPECT_EQ(ours->Parameters(matched)[1].shape, (std::vector<int64_t>{256, 6}));
  const auto trained = with("cc", "{type: model, path: p, train: true}");
  EXPECT_EQ(trained->Parameters(matched).back().name, "lopa.encoder.roberta.w");
  EXPECT_EQ(trained->CountParameters(matched), ours->CountParameters(matched) + 6);
}

TEST(SoftPrompts, FoldersThatMeanSomethingElseAreRefused) {
  const auto sites = LlamaSites(1, 8, 4, 12);
  const auto gated = MethodWith("lopa", {}), added = MethodWith("lopa", {{"fusion", "add"}});
  const auto config = added->PeftConfig(*added->MatchSites(sites), {"base", "CAUSAL_LM"});
  const absl::Status status = gated->CheckPeftConfig(config, "f");
  EXPECT_EQ(ExitCodeOf(status), 65);
  EXPECT_THAT(std::string(status.message()), HasSubstr("fusion is \"add\""));

  const auto ten = MethodWith("prompt_tuning", {});
  const auto five = MethodWith("prompt_tuning", {{"prompt_length", "5"}});
  const auto of_five = five->PeftConfig(*five->MatchSites(sites), {"base", "CAUSAL_LM"});
  EXPECT_THAT(std::string(ten->CheckPeftConfig(of_five, "f").message()),
              HasSubstr("num_virtual_tokens is 5, but adapter.prompt_length is 10"));
}

TEST(SoftPrompts, TheHeadReadsTheTextUnlessTheMethodIsPromptTuning) {
  for (const char* name : {"idpg", "lopa"}) {
    EXPECT_FALSE(MethodWith(name, {})->reads_first_row()) << name;
    EXPECT_TRUE(MethodWith(name, {{"read_at", "first"}})->reads_first_row()) << name;
    const auto first = MethodWith(name, {{"read_at", "first"}}), text = MethodWith(name, {});
    auto config = text->PeftConfig(*text->MatchSites(LlamaSites(1, 8, 4, 12)), {"base", "SEQ_CLS"});
    EXPECT_THAT(std::string(first->CheckPeftConfig(config, "f").message()),
                HasSubstr("read_at is \"text\", the recipe's is \"first\""));
    config.erase("read_at");  // as folders were written before the key
    EXPECT_TRUE(text->CheckPeftConfig(config, "f").ok()) << name;
    EXPECT_FALSE(first->CheckPeftConfig(config, "f").ok()) << name;
  }
  EXPECT_TRUE(MethodWith("prompt_tuning", {})->reads_first_row());
  EXPECT_FALSE(MethodWith("prompt_tuning", {{"read_at", "text"}})->reads_first_row());
}

TEST(SoftPrompts, ConcatPutsTwiceTheRows) {
  EXPECT_EQ(MethodWith("lopa", {})->virtual_rows(), 10);
  EXPECT_EQ(MethodWith("lopa", {{"fusion", "concat"}})->virtual_rows(), 20);
}

}  // namespace
}  // namespace graft::adapters
