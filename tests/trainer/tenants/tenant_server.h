// A tiny backbone with tenants of every method, their requests, and random schedules of them: what
// the engine's tests share, on the host and on a GPU.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "models/weights/weight_source.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"
#include "trainer/tenants/engine.h"
#include "trainer/tenants/variants.h"

namespace graft::trainer {

using testing::FailsWith;
using testing::IsOk;
using testing::TempFolder;

inline constexpr double kDeviation = 1.0;  // of random adapters: every one changes answers

// Recipes of tenants of every method, some in two sizes, by name.
inline std::map<std::string, Recipe> TenantRecipes(const TempFolder& folder,
                                                   const std::string& shape) {
  const std::string model_type = shape.substr(0, shape.find('-'));
  const std::string setting = folder.Write(
      "setting.json", R"({"format": "graft-setting", "version": 1, "model_type": ")" + model_type +
                          R"(", "num_layers": 4, "selection": {"rule": "by hand"}, "keep": [
      {"layer": 0, "roles": ["attn.q", "ffn.up"], "rank": 3, "alpha": 6.0},
      {"layer": 2, "roles": ["attn.v", "ffn.down"], "rank": 5, "alpha": 5.0}]})");
  const std::map<std::string, std::pair<std::string, FieldList>> methods = {
      {"lora", {"lora", {{"sites", "all"}, {"rank", "2"}}}},
      {"lora-wide", {"lora", {{"sites", "[attn.q, attn.v, ffn.down]"}, {"rank", "7"}}}},
      {"fanlora", {"fanlora", {{"setting", setting}}}},
      {"para", {"para", {{"rank", "4"}}}},
      {"para-normed", {"para", {{"rank", "3"}, {"input", "normed"}, {"pooling", "max"}}}},
      {"red", {"red", {}}},
      {"red-linears", {"red", {{"sites", "[attn.q, ffn.down]"}, {"what", "bias"}}}},
      {"ia3", {"ia3", {}}},
      {"prompt_tuning", {"prompt_tuning", {{"prompt_length", "3"}}}},
      {"lopa", {"lopa", {{"prompt_length", "4"}, {"rank", "2"}}}},
      {"idpg", {"idpg", {{"prompt_length", "2"}, {"hidden", "8"}}}}};
  std::map<std::string, Recipe> recipes;
  for (const auto& [name, method] : methods) {
    Recipe& recipe = recipes[name];
    recipe.model.shape = shape;
    recipe.run.seed = static_cast<int64_t>(recipes.size());
    recipe.adapter.method = method.first;
    recipe.method_fields = method.second;
  }
  return recipes;
}

inline std::unique_ptr<models::Backbone> TinyBackbone(const std::string& shape,
                                                      torch::Device device = torch::kCPU,
                                                      torch::Dtype dtype = torch::kFloat32) {
  const models::ModelConfig config = *models::NamedShape(shape);
  const auto weights = models::SyntheticWeights(config, 7);
  models::BackboneOptions options;
  options.device = device;
  options.dtype = dtype;
  return *models::BuildBackbone(config, {.num_layers = static_cast<int>(config.num_layers)},
                                *weights, options);
}

// A backbone and its tenants.
struct Server {
  explicit Server(const std::string& shape = "llama-tiny", int64_t budget = 0,
                  torch::Device device = torch::kCPU)
      : recipes(TenantRecipes(folder, shape)),
        backbone(TinyBackbone(shape, device)),
        tenants(*backbone, {.memory_budget = budget}) {}

  absl::Status Add(const std::string& name) {
    GRAFT_ASSIGN_OR_RETURN(StoredAdapter adapter,
                           RandomTenant(recipes.at(name), *backbone, 1, kDeviation));
    return tenants.Add(name, std::move(adapter));
  }
  void AddAll() {
    for (const auto& [name, recipe] : recipes) ASSERT_THAT(Add(name), IsOk());
  }

  TempFolder folder;
  std::map<std::string, Recipe> recipes;
  std::unique_ptr<models::Backbone> backbone;
  TenantTable tenants;
};

inline std::vector<TenantAnswer> RunAll(Engine* engine) {
  std::vector<TenantAnswer> answers;
  while (!engine->idle()) {
    engine->Step();
    for (TenantAnswer& answer : engine->TakeAnswers()) answers.push_back(std::move(answer));
  }
  return answers;
}

inline const std::vector<int64_t> kEndTokens = {2, 5};

// Requests of every tenant and of none: greedy, sampled and with beams; short and longer.
inline std::vector<TenantRequest> MakeRequests(const Server& server, int64_t per_tenant) {
  std::mt19937 random(11);
  const auto draw = [&](int64_t from, int64_t to) {
    return std::uniform_int_distribution<int64_t>(from, to)(random);
  };
  std::vector<std::string> tenants = server.tenants.names();
  tenants.emplace_back();
  std::vector<TenantRequest> requests;
  for (const std::string& tenant : tenants) {
    for (int64_t i = 0; i < per_tenant; ++i) {
      TenantRequest request;
      request.id = static_cast<int64_t>(requests.size());
      request.tenant = tenant;
      for (int64_t length = draw(1, 12); length > 0; --length)
        request.prompt.push_back(draw(0, 255));
      request.max_new_tokens = draw(1, 8);
      if (i % 3 == 1) request.sampling = {.temperature = 0.8, .top_p = 0.9, .seed = 3};
      if (i % 3 == 2) request.beams = draw(2, 3);
      requests.push_back(std::move(request));
    }
  }
  return requests;
}

// What each request gets when nothing runs beside it.
inline std::vector<std::vector<int64_t>> AnswersAlone(Server* server,
                                                      const std::vector<TenantRequest>& requests) {
  std::vector<std::vector<int64_t>> answers;
  for (const TenantRequest& request : requests) {
    Engine engine(*server->backbone, server->tenants,
                  {.width = request.beams, .end_tokens = kEndTokens});
    EXPECT_THAT(engine.Submit(request), IsOk());
    answers.push_back(RunAll(&engine).at(0).tokens);
  }
  return answers;
}

// The tokens of each request, all of them in the rows of one engine.
inline std::vector<std::vector<int64_t>> AnswersTogether(Server* server,
                                                         const std::vector<TenantRequest>& requests,
                                                         TenantKernel kernel) {
  Engine engine(*server->backbone, server->tenants,
                {.width = 20, .end_tokens = kEndTokens, .kernel = kernel});
  for (const TenantRequest& request : requests) EXPECT_THAT(engine.Submit(request), IsOk());
  std::vector<std::vector<int64_t>> answers(requests.size());
  for (const TenantAnswer& answer : RunAll(&engine))
    answers[static_cast<size_t>(answer.id)] = answer.tokens;
  return answers;
}

// One random run of some of the requests: they arrive in any order at any time, in batches of any
// width, while tenants are unloaded and loaded again under a budget that makes them evict each
// other.
inline void RunSchedule(Server* server, const std::vector<TenantRequest>& requests,
                        const std::vector<std::vector<int64_t>>& alone, uint32_t seed) {
  std::mt19937 random(seed);
  const auto draw = [&](int64_t from, int64_t to) {
    return std::uniform_int_distribution<int64_t>(from, to)(random);
  };
  Engine engine(*server->backbone, server->tenants,
                {.width = draw(3, 9), .end_tokens = kEndTokens});
  std::vector<int64_t> left;
  for (int64_t i = draw(3, 9); i > 0; --i)
    left.push_back(draw(0, static_cast<int64_t>(requests.size()) - 1));
  std::multiset<int64_t> open, unloaded;  // requests by id
  size_t answered = 0;
  const size_t total = left.size();
  while (answered < total) {
    while (!left.empty() && (engine.idle() || draw(0, 2) > 0)) {
      ASSERT_THAT(engine.Submit(requests[static_cast<size_t>(left.back())]), IsOk());
      open.insert(left.back());
      left.pop_back();
    }
    if (draw(0, 19) == 0) {
      // Those that wait for it may lose it, those that run with it may not notice.
      const std::vector<std::string> names = server->tenants.names();
      const std::string& name =
          names[static_cast<size_t>(draw(0, static_cast<int64_t>(names.size()) - 1))];
      ASSERT_THAT(server->tenants.Remove(name), IsOk());
      if (draw(0, 1) == 0) engine.Step();
      ASSERT_THAT(server->Add(name), IsOk());
      for (const int64_t id : open) {
        if (requests[static_cast<size_t>(id)].tenant == name) unloaded.insert(id);
      }
    }
    engine.Step();
    for (const TenantAnswer& answer : engine.TakeAnswers()) {
      ++answered;
      if (!answer.status.ok()) {
        EXPECT_THAT(answer.status, FailsWith(ErrorKind::kInput, "loaded are"));
        EXPECT_TRUE(unloaded.contains(answer.id)) << answer.id;
      } else {
        EXPECT_EQ(answer.tokens, alone[static_cast<size_t>(answer.id)])
            << "schedule " << seed << ", request " << answer.id << " of "
            << requests[static_cast<size_t>(answer.id)].tenant;
      }
    }
  }
}

}  // namespace graft::trainer
