#include "trainer/config.h"

#include <memory>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft::trainer {
namespace {

using graft::testing::FailsWith;
using graft::testing::IsOk;
using graft::testing::TempFolder;

// Methods: one with keys of its own, one that shares only `sites`, one with a map.
struct FakeLora {
  std::vector<std::string> sites = {"attn.q", "attn.v"};
  int64_t rank = 8;
  double alpha = 16, dropout = 0;
  void Visit(FieldVisitor& v) {
    v.TextList({"sites", "roles"}, &sites);
    v.Int({"rank", "rank of the update"}, &rank, 1, 65536);
    v.Real({"alpha", "scale"}, &alpha, 0, 1e6);
    v.Real({"dropout", "probability"}, &dropout, 0, 0.99);
  }
};

struct FakeRed {
  std::vector<std::string> sites = {"ffn.out"};
  std::string what = "scale_and_bias";
  void Visit(FieldVisitor& v) {
    v.TextList({"sites", "roles"}, &sites);
    v.Text({"what", "which halves"}, &what, {"scale_and_bias", "scale", "bias"});
  }
};

struct FakeIdpg {
  std::string encoder = "embedding_mean";
  void Visit(FieldVisitor& v) {
    v.Begin({"encoder", "what reads the prompt"});
    v.Text({"type", "of it"}, &encoder, {"embedding_mean", "model"});
    v.End();
  }
};

template <typename Method>
VisitFunction Fresh() {
  return [method = std::make_shared<Method>()](FieldVisitor& v) { method->Visit(v); };
}

MethodKeys Methods() {
  return {{"lora", "red"}, [](const std::string& name) -> absl::StatusOr<VisitFunction> {
            if (name == "lora") return Fresh<FakeLora>();
            if (name == "red") return Fresh<FakeRed>();
            return RecipeError(
                absl::StrCat("adapter.method: unknown method `", name, "`, known: lora, red"));
          }};
}

constexpr char kValid[] = R"(run: {name: demo, output: runs/demo, seed: 7}
model:
  path: models/smol
  dtype: bfloat16
data: {train: data/train, eval: data/eval, shuffle: false}
adapter:
  method: lora
  sites: [attn.q, attn.k]
  layers: [0-3, 7]
  rank: 4
parallel: {data: 2, pipeline: 2, schedule: interleaved, split: [3, 3, 1, 1]}
optim: {lr: 3e-4, betas: [0.9, 0.95], global_batch: 16, steps: 20}
eval: {every: 5, patience: 2}
)";

absl::StatusOr<Recipe> Parse(const std::string& yaml,
                             const std::vector<std::string>& overrides = {}) {
  return ParseRecipe(yaml, "r.yaml", overrides, Methods());
}

TEST(Recipe, ReadsEverySection) {
  const absl::StatusOr<Recipe> recipe = Parse(kValid);
  ASSERT_THAT(recipe, IsOk());
  EXPECT_EQ(recipe->run.seed, 7);
  EXPECT_EQ(recipe->model.dtype, "bfloat16");
  EXPECT_FALSE(recipe->data.shuffle);
  EXPECT_EQ(recipe->adapter.method, "lora");
  EXPECT_EQ(*AdapterLayers(*recipe, 8), (std::vector<int>{0, 1, 2, 3, 7}));
  EXPECT_EQ(recipe->parallel.world(), 4);
  EXPECT_EQ(recipe->parallel.split_sizes(), (std::vector<int>{3, 3, 1, 1}));
  EXPECT_EQ(recipe->optim.lr, 3e-4);
  EXPECT_EQ(recipe->eval.patience, 2);
  EXPECT_TRUE(recipe->warnings.empty());
}

TEST(Recipe, HasTheDefaultsOfTheInterface) {
  const absl::StatusOr<Recipe> recipe = Parse("adapter: {method: lora}\n");
  ASSERT_THAT(recipe, IsOk());
  EXPECT_EQ(recipe->run.output, "runs/run");
  EXPECT_EQ(recipe->model.dtype, "float32");
  EXPECT_EQ(recipe->data.shuffle, true);
  EXPECT_EQ(recipe->adapter.compute_dtype, "model");
  EXPECT_EQ(recipe->parallel.schedule, "1f1b");
  EXPECT_EQ(recipe->parallel.parts_per_stage(), 1);
  EXPECT_TRUE(recipe->parallel.split_sizes().empty());
  EXPECT_EQ(recipe->optim.lr, 1e-4);
  EXPECT_EQ(recipe->optim.betas, (std::vector<double>{0.9, 0.999}));
  EXPECT_EQ(recipe->optim.clip_norm, 1.0);
  EXPECT_EQ(recipe->optim.schedule, "constant");
  EXPECT_EQ(recipe->optim.global_batch, 8);
  EXPECT_EQ(recipe->checkpoint.every, 100);
  EXPECT_EQ(recipe->checkpoint.resume, "auto");
  EXPECT_EQ(recipe->watchdog.setup_seconds, 900);
  EXPECT_EQ(recipe->generate.max_new_tokens, 128);
}

TEST(Recipe, TheCommandLineWinsAndIsCheckedTheSameWay) {
  const absl::StatusOr<Recipe> recipe =
      Parse(kValid, {"optim.lr=1e-5", "adapter.rank=2", "log.every=10", "parallel.split=auto"});
  ASSERT_THAT(recipe, IsOk());
  EXPECT_EQ(recipe->optim.lr, 1e-5);
  EXPECT_EQ(recipe->log.every, 10);
  FakeLora lora;
  ASSERT_THAT(ApplyMethodFields(*recipe, [&](FieldVisitor& v) { lora.Visit(v); }), IsOk());
  EXPECT_EQ(lora.rank, 2);
  EXPECT_EQ(lora.alpha, 16);
  EXPECT_EQ(lora.sites, (std::vector<std::string>{"attn.q", "attn.k"}));
  EXPECT_THAT(Parse(kValid, {"optim.lr=-1"}),
              FailsWith(ErrorKind::kRecipe, "command line: optim.lr: found `-1`"));
  EXPECT_THAT(Parse(kValid, {"optim.lr=1", "optim.lr=2"}),
              FailsWith(ErrorKind::kUsage, "optim.lr is given twice"));
  EXPECT_THAT(Parse(kValid, {"optim.lr"}), FailsWith(ErrorKind::kUsage, "optim.lr"));
}

TEST(Recipe, ABeamSearchDoesNotSample) {
  const std::string beams = "adapter: {method: lora}\ngenerate: {beams: 4";
  EXPECT_THAT(Parse(beams + "}\n"), IsOk());
  EXPECT_THAT(Parse(beams + ", temperature: 0.7}\n"),
              FailsWith(ErrorKind::kRecipe,
                        "r.yaml: generate.beams: found 4 with generate.temperature 0.7"));
  EXPECT_THAT(Parse("generate: {beams: 0}\n"),
              FailsWith(ErrorKind::kRecipe, "generate.beams: found `0`"));
}

TEST(Recipe, PrintsResolvedAndReadsBackToTheSame) {
  const absl::StatusOr<Recipe> recipe = Parse(kValid);
  ASSERT_THAT(recipe, IsOk());
  const std::string yaml = RecipeYaml(*recipe);
  EXPECT_THAT(yaml, ::testing::HasSubstr("  split: [3, 3, 1, 1]\n"));
  EXPECT_THAT(yaml, ::testing::HasSubstr("  rank: 4\n  alpha: 16.0\n"));
  EXPECT_THAT(yaml, ::testing::HasSubstr("  head:\n    train: true\n"));
  const absl::StatusOr<Recipe> back = Parse(yaml);
  ASSERT_THAT(back, IsOk());
  EXPECT_EQ(ResolvedFields(*back), ResolvedFields(*recipe));
  const absl::StatusOr<Recipe> other = Parse(yaml, {"adapter.rank=5"});
  ASSERT_THAT(other, IsOk());
  EXPECT_NE(ResolvedFields(*other), ResolvedFields(*recipe));
}

TEST(Recipe, PrintsNoAdapterWhereThereIsNone) {
  const absl::StatusOr<Recipe> recipe = Parse("model: {path: m}\n");
  ASSERT_THAT(recipe, IsOk());
  EXPECT_THAT(RecipeYaml(*recipe), ::testing::Not(::testing::HasSubstr("\nadapter:")));
  EXPECT_THAT(Parse(RecipeYaml(*recipe)), IsOk());
}

TEST(Recipe, ScoreHasItsKeys) {
  const absl::StatusOr<Recipe> recipe =
      Parse("run: {output: out}\nscore: {method: taylor_sq, select: {rule: top_k, k: 5}}\n");
  ASSERT_THAT(recipe, IsOk());
  EXPECT_EQ(recipe->score.output, "out/score");
  EXPECT_EQ(recipe->score.max_samples, 512);
  EXPECT_EQ(recipe->score.select.k, 5);
  EXPECT_TRUE(recipe->score.select.rescale);
  EXPECT_THAT(Parse("score: {method: fanlora}"),
              FailsWith(ErrorKind::kRecipe, "r.yaml:1: score.method: found `fanlora`"));
  EXPECT_THAT(Parse("score: {select: {k: 0}}"),
              FailsWith(ErrorKind::kRecipe, "score.select.k: found `0`"));
}

TEST(Recipe, ASharedKeyThatTheMethodIgnoresDrawsOneWarning) {
  const absl::StatusOr<Recipe> recipe = Parse("adapter:\n  method: red\n  rank: 8\n");
  ASSERT_THAT(recipe, IsOk());
  EXPECT_EQ(recipe->warnings,
            std::vector<std::string>{"r.yaml:3: adapter.rank: method red does not use it"});
  EXPECT_THAT(Parse("adapter: {method: lora, what: scale}"),
              FailsWith(ErrorKind::kRecipe, "adapter.what: unknown key"));
}

TEST(Recipe, HelpListsEveryKeyOfEverySectionAndMethod) {
  const std::string help = RecipeHelp(Methods());
  const absl::StatusOr<Recipe> recipe = Parse(kValid);
  ASSERT_THAT(recipe, IsOk());
  for (const auto& [key, value] : ResolvedFields(*recipe)) {
    EXPECT_THAT(help, ::testing::HasSubstr(absl::StrCat("  ", key, " = ")));
  }
  EXPECT_THAT(help, ::testing::HasSubstr("adapter, method: red:\n"));
  EXPECT_THAT(help, ::testing::HasSubstr("  adapter.what = scale_and_bias  (scale_and_bias | "));
}

struct BadRecipe {
  const char* name;
  const char* before;  // replaced in kValid ...
  const char* after;   // ... by this
  const char* message;
};

class RecipeRefuses : public ::testing::TestWithParam<BadRecipe> {};

TEST_P(RecipeRefuses, NamingFileKeyFoundAllowed) {
  ASSERT_NE(std::string(kValid).find(GetParam().before), std::string::npos);
  const std::string yaml = absl::StrReplaceAll(kValid, {{GetParam().before, GetParam().after}});
  EXPECT_THAT(Parse(yaml), FailsWith(ErrorKind::kRecipe, GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Rows, RecipeRefuses,
    ::testing::Values(
        BadRecipe{"UnknownKey", "lr: 3e-4", "learning_rte: 3e-4",
                  "r.yaml:12: optim.learning_rte: unknown key"},
        BadRecipe{"LrNan", "3e-4", "nan", "r.yaml:12: optim.lr: found `nan`"},
        BadRecipe{"LrNegative", "3e-4", "-1", "optim.lr: found `-1`"},
        BadRecipe{"LrOverflow", "3e-4", "1e400", "optim.lr: found `1e400`"},
        BadRecipe{"UnknownSection", "optim:", "optims:",
                  "r.yaml:12: optims: unknown section; did you mean `optim`?; known: run, model"},
        BadRecipe{"LaterSection", "eval:", "serve:", "serve: unknown section"},
        BadRecipe{"RankZero", "rank: 4", "rank: 0",
                  "r.yaml:10: adapter.rank: found `0`, must be an integer from 1"},
        BadRecipe{"UnknownMethod", "method: lora", "method: lroa",
                  "r.yaml:7: adapter.method: unknown method `lroa`"},
        BadRecipe{"NoMethod", "  method: lora\n", "",
                  "adapter.method: missing, must be one of lora, red"},
        BadRecipe{"MethodList", "method: lora", "method: [lora]",
                  "adapter.method: found a list of 1"},
        BadRecipe{"Quantize", "dtype: bfloat16", "quantize: int4",
                  "model.quantize: found `int4`, must be one of none, int8, nf4"},
        BadRecipe{"PathAndShape", "dtype: bfloat16", "shape: llama-1b",
                  "model.shape: given together with model.path"},
        BadRecipe{"Dtype", "bfloat16", "float16",
                  "model.dtype: found `float16`, must be one of float32, bfloat16"},
        BadRecipe{"Batch", "global_batch: 16", "global_batch: 15",
                  "r.yaml: optim.global_batch: found 15, must be divisible by parallel.data (2)"},
        BadRecipe{"MicroBatch", "steps: 20", "micro_batch: 0", "optim.micro_batch: found `0`"},
        BadRecipe{"OneBeta", "[0.9, 0.95]", "0.9", "optim.betas: must be two numbers"},
        BadRecipe{"BetaOne", "[0.9, 0.95]", "[0.9, 1.0]", "optim.betas: must be two numbers"},
        BadRecipe{"SplitLength", "[3, 3, 1, 1]", "[4, 4]",
                  "parallel.split: found 2 values, must be auto or 4 numbers"},
        BadRecipe{"SplitZero", "[3, 3, 1, 1]", "[3, 3, 2, 0]", "parallel.split: found `0`"},
        BadRecipe{"Chunks", "split: [3, 3, 1, 1]", "chunks: 0", "parallel.chunks: found `0`"},
        BadRecipe{"ShardWeights", "data: 2,", "data: 1, shard_weights: true,",
                  "parallel.shard_weights: found true with parallel.data 1"},
        BadRecipe{"LayersOrder", "0-3", "3-0", "adapter.layers: found `3-0`"},
        BadRecipe{"LayersAllMixed", "[0-3, 7]", "[all, 7]", "adapter.layers: found `all`"},
        BadRecipe{"LayersEmpty", "[0-3, 7]", "[]", "adapter.layers: found an empty list"},
        BadRecipe{"EvalWithoutData", "eval: data/eval, ", "",
                  "data.eval: missing, eval.every needs it"},
        BadRecipe{"PatienceAlone", "every: 5, ", "", "eval.patience: found 2, needs eval.every"},
        BadRecipe{"SectionScalar", "model:\n  path: models/smol\n  dtype: bfloat16\n", "model: 3\n",
                  "r.yaml:2: model: found `3`, must be a map"}),
    [](const auto& row) { return row.param.name; });

// What a recorded pass cannot do, each with both keys.
TEST(Recipe, CudaGraphsRefuseWhatTheyCannotRecord) {
  const auto parse = [](const std::string& other) {
    std::vector<std::string> overrides = {"parallel.pipeline=1", "parallel.schedule=1f1b",
                                          "parallel.split=auto", "parallel.cuda_graphs=true"};
    const std::string key = other.substr(0, other.find('='));
    std::erase_if(overrides, [&](const std::string& all) { return all.starts_with(key + "="); });
    if (!other.empty()) overrides.push_back(other);
    return Parse(kValid, overrides);
  };
  ASSERT_THAT(parse(""), IsOk());
  EXPECT_TRUE(parse("")->parallel.cuda_graphs);
  EXPECT_FALSE(Parse(kValid)->parallel.cuda_graphs);
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"parallel.pipeline", "2"},
                                                        {"parallel.schedule", "gpipe"},
                                                        {"parallel.shard_weights", "true"},
                                                        {"parallel.reserve_memory", "true"},
                                                        {"parallel.deterministic", "false"},
                                                        {"model.recompute", "layer"},
                                                        {"task.type", "seq2seq"},
                                                        {"adapter.head.dropout", "0.1"},
                                                        {"adapter.dropout", "0.05"}}) {
    EXPECT_THAT(
        parse(key + "=" + value),
        FailsWith(ErrorKind::kRecipe, "r.yaml: parallel.cuda_graphs: found true with " + key + " " +
                                          value + "; allowed: false, or " + key));
  }
}

TEST(Recipe, CudaGraphsRefuseMethodsThatTheyCannotRecord) {
  const MethodKeys methods = {{"full", "idpg"}, [](const std::string& name) {
                                return name == "idpg" ? Fresh<FakeIdpg>()
                                                      : VisitFunction([](FieldVisitor&) {});
                              }};
  const auto parse = [&methods](const std::string& adapter) {
    return ParseRecipe("adapter: {" + adapter + "}", "r.yaml", {"parallel.cuda_graphs=true"},
                       methods);
  };
  EXPECT_THAT(parse("method: full"),
              FailsWith(ErrorKind::kRecipe,
                        "r.yaml: parallel.cuda_graphs: found true with adapter.method full; "
                        "allowed: false, or adapter.method that is not full"));
  ASSERT_THAT(parse("method: idpg, encoder: {type: embedding_mean}"), IsOk());
  EXPECT_THAT(parse("method: idpg, encoder: {type: model}"),
              FailsWith(ErrorKind::kRecipe,
                        "r.yaml: parallel.cuda_graphs: found true with adapter.encoder.type model; "
                        "allowed: false, or adapter.encoder.type embedding_mean"));
}

TEST(Recipe, RefusesWhatIsNotAMapOfSections) {
  EXPECT_THAT(Parse(""), FailsWith(ErrorKind::kRecipe, "r.yaml: found nothing, must be a map"));
  EXPECT_THAT(Parse("- 1"), FailsWith(ErrorKind::kRecipe, "r.yaml:1: found a list of 1"));
}

TEST(RequireKeys, NamesWhatACommandNeeds) {
  const absl::StatusOr<Recipe> recipe = Parse("model: {shape: llama-1b}\n");
  ASSERT_THAT(recipe, IsOk());
  EXPECT_THAT(RequireKeys(*recipe, {"model"}, "plan"), IsOk());
  EXPECT_THAT(RequireKeys(*recipe, {"model", "data.train"}, "train"),
              FailsWith(ErrorKind::kRecipe, "r.yaml: data.train: missing, `graft train` needs it"));
  EXPECT_THAT(RequireKeys(*recipe, {"adapter.method"}, "train"),
              FailsWith(ErrorKind::kRecipe, "adapter.method: missing"));
  EXPECT_THAT(RequireKeys(Recipe(), {"model"}, "eval"),
              FailsWith(ErrorKind::kRecipe, "model.path: missing"));
}

TEST(ValidateWorld, ComparesTheGridWithTheRanks) {
  const absl::StatusOr<Recipe> recipe = Parse(kValid);
  ASSERT_THAT(recipe, IsOk());
  EXPECT_THAT(ValidateWorld(*recipe, 4), IsOk());
  EXPECT_THAT(
      ValidateWorld(*recipe, 3),
      FailsWith(ErrorKind::kRecipe, "2 x 2 = 4, must equal the number of ranks, which is 3"));
}

TEST(AdapterLayers, StaysInTheModel) {
  const absl::StatusOr<Recipe> recipe = Parse(kValid);
  ASSERT_THAT(recipe, IsOk());
  EXPECT_THAT(
      AdapterLayers(*recipe, 7),
      FailsWith(ErrorKind::kRecipe, "adapter.layers: found `7`, the model has layers 0 to 6"));
  EXPECT_EQ(*AdapterLayers(*Parse("adapter: {method: red}"), 3), (std::vector<int>{0, 1, 2}));
}

TEST(LoadRecipe, NamesTheFile) {
  const TempFolder folder;
  ASSERT_THAT(LoadRecipe(folder.Write("a.yaml", kValid), {}, Methods()), IsOk());
  EXPECT_THAT(LoadRecipe(folder.Path("b.yaml"), {}, Methods()),
              FailsWith(ErrorKind::kRecipe, "b.yaml: opening it failed: No such file"));
  EXPECT_THAT(LoadRecipe(folder.path(), {}, Methods()),
              FailsWith(ErrorKind::kRecipe, "is a folder"));
}

// A mutated recipe loads, or fails with one line of kind recipe.
TEST(Recipe, SurvivesRandomMutations) {
  std::mt19937 random(3);
  int refused = 0;
  for (int i = 0; i < 1000; ++i) {
    std::string yaml = kValid;
    for (unsigned edits = 1 + random() % 3; edits > 0; --edits) {
      const std::size_t at = random() % yaml.size();
      switch (random() % 3) {
        case 0:
          yaml[at] = static_cast<char>(random() % 256);
          break;
        case 1:
          yaml.erase(at, 1 + random() % 5);
          break;
        default:
          yaml.insert(at, yaml.substr(random() % yaml.size(), 1 + random() % 8));
      }
    }
    const absl::StatusOr<Recipe> recipe = Parse(yaml);
    if (recipe.ok()) {
      EXPECT_THAT(Parse(RecipeYaml(*recipe)), IsOk()) << yaml;
      continue;
    }
    ++refused;
    EXPECT_EQ(KindOf(recipe.status()), ErrorKind::kRecipe) << recipe.status();
    EXPECT_EQ(std::string(recipe.status().message()).find('\n'), std::string::npos);
    EXPECT_EQ(std::string(recipe.status().message()).find("r.yaml"), 0u) << recipe.status();
  }
  EXPECT_GT(refused, 300);
}

}  // namespace
}  // namespace graft::trainer
