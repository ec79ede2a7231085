// The engine against what each request gets alone: `generate` with that adapter, and an engine with
// nothing else to do. A thousand random schedules of tenants of every method must not change a
// token.
#include "trainer/tenants/engine.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "models/weights/weight_source.h"
#include "sharding/adapter_folder.h"
#include "tests/testing/status_matchers.h"
#include "tests/trainer/tenants/tenant_server.h"
#include "tests/trainer/training_run.h"
#include "trainer/generator.h"
#include "trainer/tenants/variants.h"

namespace graft::trainer {
namespace {

using testing::FailsWith;
using testing::IsOk;
using testing::TempFolder;
using testing::TrainingRun;

// Every tenant, and the bare backbone, answer as `generate` does with that adapter alone, while all
// of them share the engine's steps.
TEST(EngineTest, AnswersAsGenerateDoes) {
  const TrainingRun run;
  Server server;
  for (auto& [name, recipe] : server.recipes) {
    const StoredAdapter adapter = *RandomTenant(recipe, *server.backbone, 1, kDeviation);
    const adapters::Method& method = *adapter.choice.method;
    recipe.adapter.init_from = run.outputs().Path(name);
    ASSERT_THAT(sharding::WriteAdapterFolder(
                    recipe.adapter.init_from,
                    method.PeftConfig(adapter.choice.matched, {"tiny", "CAUSAL_LM"}),
                    method.ToFolder(adapter.choice.matched, adapter.tensors)),
                IsOk());
    absl::StatusOr<StoredAdapter> read = ReadTenant(recipe, server.backbone->config());
    ASSERT_THAT(read.status(), IsOk());
    ASSERT_THAT(server.tenants.Add(name, *std::move(read)), IsOk());
  }
  server.recipes[""].model.shape = "llama-tiny";

  std::map<std::string, std::vector<std::vector<int64_t>>> by_tenant;
  for (const GenerateOptions& options : {GenerateOptions{.max_new_tokens = 5},
                                         GenerateOptions{.max_new_tokens = 5,
                                         .sampling = {.temperature = 0.9, .top_p = 0.8, .seed = 4}},
                                         GenerateOptions{.max_new_tokens = 5, .beams = 2}}) {
    std::multiset<std::pair<int64_t, std::vector<int64_t>>> wanted, got;  // by id
    Engine engine(*server.backbone, server.tenants, {.width = 24});
    for (auto& [name, recipe] : server.recipes) {
      Recipe alone = recipe;
      alone.run.seed = 7;  // of the weights
      alone.parallel.threads = 1;
      std::vector<Continuation> answers;
      ASSERT_THAT(TrainingRun::OnRanks(
                      alone,
                      [&](comm::World& world) -> absl::Status {
                        GRAFT_ASSIGN_OR_RETURN(const auto data, Dataset::Open(run.data().path()));
                        GRAFT_ASSIGN_OR_RETURN(
                            const auto model,
                            LoadedModel::Load(alone, world, {.sequence_length = 32}));
                        GRAFT_ASSIGN_OR_RETURN(answers, Generate(*model, *data, 6, options));
                        return absl::OkStatus();
                      }),
                  IsOk());
      for (const Continuation& answer : answers) by_tenant[name].push_back(answer.tokens);
      for (const Continuation& answer : answers) {
        ASSERT_THAT(engine.Submit({.id = answer.sample_id,
                                   .tenant = name,
                                   .prompt = answer.prompt,
                                   .max_new_tokens = options.max_new_tokens,
                                   .sampling = options.sampling,
                                   .beams = options.beams}),
                    IsOk());
        wanted.emplace(answer.sample_id, answer.tokens);
      }
    }
    for (const TenantAnswer& answer : RunAll(&engine)) got.emplace(answer.id, answer.tokens);
    EXPECT_EQ(got, wanted);
  }
  std::set<std::vector<std::vector<int64_t>>> different;  // each adapter does something
  for (const auto& [name, answers] : by_tenant) different.insert(answers);
  EXPECT_EQ(different.size(), by_tenant.size());
}

int64_t LargestTenant(Server* server) {
  int64_t largest = 0;
  for (const std::string& name : server->tenants.names())
    largest = std::max(largest, (*server->tenants.Acquire(name))->bytes());
  return largest;
}

class SchedulesTest : public ::testing::TestWithParam<std::pair<const char*, uint32_t>> {};

TEST_P(SchedulesTest, NoScheduleChangesAToken) {
  const auto [shape, count] = GetParam();
  Server plenty(shape);
  plenty.AddAll();
  const std::vector<TenantRequest> requests = MakeRequests(plenty, 6);
  const std::vector<std::vector<int64_t>> alone = AnswersAlone(&plenty, requests);
  Server tight(shape, LargestTenant(&plenty) * 3 / 2);
  tight.AddAll();
  for (uint32_t seed = 0; seed < count && !HasFailure(); ++seed)
    RunSchedule(seed % 2 == 0 ? &tight : &plenty, requests, alone, seed);
  EXPECT_GT(tight.tenants.num_evictions(), count / 2);
  EXPECT_EQ(plenty.tenants.num_evictions(), 0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, SchedulesTest,
                         ::testing::Values(std::pair("llama-tiny", 1000u),
                                           std::pair("gpt2-tiny", 100u)),
                         [](const auto& param) { return param.index == 0 ? "Llama" : "Gpt2"; });

// The naive kernel is another order of the same sums.
TEST(EngineTest, TheLoopAnswersAsTheGroupedKernels) {
  Server server;
  server.AddAll();
  const std::vector<TenantRequest> requests = MakeRequests(server, 3);
  EXPECT_EQ(AnswersTogether(&server, requests, TenantKernel::kGrouped),
            AnswersTogether(&server, requests, TenantKernel::kLoop));
}

TEST(EngineTest, RefusesARequestAndGoesOnWithTheOthers) {
  Server server;
  ASSERT_THAT(server.Add("lora"), IsOk());
  ASSERT_THAT(server.Add("lopa"), IsOk());
  Engine engine(*server.backbone, server.tenants, {.width = 4, .max_rows = 20});
  const TenantRequest good = {.id = 1, .tenant = "lora", .prompt = {3, 4, 5}, .max_new_tokens = 4};
  ASSERT_THAT(engine.Submit(good), IsOk());
  engine.Step();
  const auto refused = [&](TenantRequest request, ErrorKind kind, const std::string& message) {
    request.id = 9;
    EXPECT_THAT(engine.Submit(std::move(request)), FailsWith(kind, message));
  };
  TenantRequest bad = good;
  bad.tenant = "lore";
  refused(bad, ErrorKind::kInput, "request 9: tenant: found \"lore\", loaded are lopa, lora");
  bad = good;
  bad.max_new_tokens = 18;
  refused(bad, ErrorKind::kInput,
          "request 9: found 3 rows of prompt and 18 new tokens, the cache of a sequence has 20");
  bad.max_new_tokens = 14;
  bad.tenant = "lopa";  // its rows count
  refused(bad, ErrorKind::kInput, "found 7 rows of prompt and 14 new tokens");
  bad = good;
  bad.prompt = {};
  refused(bad, ErrorKind::kInput, "request 9: prompt: empty");
  bad.prompt = {3, 256};
  refused(bad, ErrorKind::kInput, "request 9: prompt: found token 256, the vocabulary has 256");
  bad = good;
  bad.max_new_tokens = 0;
  refused(bad, ErrorKind::kInput, "request 9: max_new_tokens: found 0");
  bad = good;
  bad.beams = 5;
  refused(bad, ErrorKind::kRecipe, "request 9: beams: found 5, must be from 1 to 4");
  const std::vector<TenantAnswer> answers = RunAll(&engine);
  ASSERT_EQ(answers.size(), 1u);
  EXPECT_THAT(answers[0].status, IsOk());
  EXPECT_EQ(answers[0].tokens, AnswersAlone(&server, {good})[0]);
}

TEST(TenantTableTest, RefusesWhatDoesNotFit) {
  Server server("llama-tiny", /*budget=*/10'000);
  EXPECT_THAT(server.Add("lora"),
              FailsWith(ErrorKind::kRecipe, "the memory budget for all is 10000"));
  EXPECT_TRUE(server.tenants.names().empty());
  ASSERT_THAT(server.Add("red"), IsOk());
  EXPECT_THAT(server.Add("red"), FailsWith(ErrorKind::kInput, "found \"red\""));
  EXPECT_THAT(server.tenants.Remove("ia3"), FailsWith(ErrorKind::kInput, "are red"));
  EXPECT_LE(server.tenants.ready_bytes(), 10'000);
}

// An adapter of another backbone is refused when it is read, naming the tensor.
TEST(TenantTableTest, RefusesAnAdapterOfAnotherBackbone) {
  Server other("llama-tiny-untied"), server;
  Recipe recipe = server.recipes.at("lora");
  const StoredAdapter adapter = *RandomTenant(recipe, *other.backbone, 1);
  recipe.adapter.init_from = server.folder.Path("adapter");
  ASSERT_THAT(sharding::WriteAdapterFolder(
                  recipe.adapter.init_from,
                  adapter.choice.method->PeftConfig(adapter.choice.matched, {"tiny", "CAUSAL_LM"}),
                  adapter.tensors),
              IsOk());
  EXPECT_THAT(ReadTenant(recipe, server.backbone->config()).status(),
              FailsWith(ErrorKind::kInput, "k_proj.lora_B"));
}

}  // namespace
}  // namespace graft::trainer
