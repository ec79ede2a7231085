// Many tenants on one backbone on a GPU: the kernels of a decoding step against the host's, and the
// engine's tokens with and without CUDA graphs against the host's.
#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/StreamGuard.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "adapters/row_tables.h"
#include "models/gpu_graph.h"
#include "models/gpu_kernels.h"
#include "tests/adapters/row_tables_case.h"
#include "tests/models/decode_attention_case.h"
#include "tests/models/relative_error.h"
#include "tests/trainer/tenants/tenant_server.h"

namespace graft::trainer {
namespace {

using models::RelativeError;

const torch::Device kGpu(torch::kCUDA, 0);

TEST(TenantKernelsTest, TheyRunHere) {
  const torch::Tensor x = at::zeros({2, 64}, at::device(kGpu));
  models::GpuKernels::Variant variant;
  ASSERT_TRUE(adapters::RowTableKernels().Fits({x}, 64, &variant));
  ASSERT_TRUE(models::device::DecodeAttentionKernels().Fits({x}, 64, &variant));
  ASSERT_TRUE(adapters::RowTables(2, torch::kFloat32, kGpu).by_address());
}

TEST(TenantKernelsTest, EachRowGetsItsOwnAdaptersEdit) {
  for (const auto& [dtype, tolerance] :
       {std::pair(torch::kFloat32, 2e-6), std::pair(torch::kBFloat16, 4e-3)}) {
    for (const auto& [in, out] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 1}, {15, 17}, {64, 64}, {70, 33}, {576, 1536}, {14336, 4096}}) {
      const adapters::RowTablesCase rows(in, out, dtype, kGpu);
      const auto got = rows.Edited(), want = rows.Wanted();
      EXPECT_LT(RelativeError(got.first, want.first), tolerance) << in << " " << out;
      EXPECT_LT(RelativeError(got.second, want.second), tolerance) << in << " " << out;
      EXPECT_LT(RelativeError(got.scaled, want.scaled), tolerance) << in << " " << out;
      EXPECT_TRUE(at::equal(got.first[rows.kBareRow], rows.y()[rows.kBareRow]));
    }
  }
}

// One chunk of keys, and several.
TEST(TenantKernelsTest, DecodeAttention) {
  for (const models::DecodeHeads& heads : models::kDecodeHeads) {
    for (const int64_t rows : {40, 256, 257, 1100}) {
      for (const auto& [dtype, tolerance] :
           {std::pair(torch::kFloat32, 4e-6), std::pair(torch::kBFloat16, 8e-3)}) {
        const models::DecodeCase gpu(heads, rows, dtype, kGpu);
        const torch::Tensor want = gpu.OnHost();
        EXPECT_LT(RelativeError(gpu.OnDevice(), want), tolerance)
            << heads.heads << " " << heads.kv_heads << " " << heads.width << " " << heads.window
            << " " << rows;
        EXPECT_TRUE(gpu.HasStoredItsRows());
      }
    }
  }
}

TEST(GpuGraphTest, AReplayDoesWhatWasRecordedOnNewNumbers) {
  const c10::StreamGuard on_stream(models::ServingStream(kGpu));
  const torch::Tensor input = at::ones({1000}, at::device(kGpu)),
                      weight = at::rand({1000, 1000}).to(kGpu);
  torch::Tensor output;
  const auto graph = models::GpuGraph::Record(kGpu, [&] {
    output = at::mm((input * 2).view({1, -1}), weight).add(1);
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  for (const double value : {3.0, -0.5}) {
    input.fill_(value);
    // Memory of tensors that live across a replay must not be the recording's.
    std::vector<torch::Tensor> others;
    for (int i = 0; i < 50; ++i) others.push_back(at::full({1000}, i, at::device(kGpu)));
    (*graph)->Launch();
    EXPECT_LT(RelativeError(output, at::mm((input * 2).view({1, -1}), weight).add(1)), 1e-6);
    for (int i = 0; i < 50; ++i)
      EXPECT_EQ(others[static_cast<size_t>(i)].sum().item<float>(), 1000.0f * i);
    ASSERT_TRUE((*graph)->IsValid());
  }
  // Without its output, LibTorch has memory that it may give back.
  output.reset();
  at::getDeviceAllocator(kGpu.type())->emptyCache();
  EXPECT_FALSE((*graph)->IsValid());
}

TEST(GpuGraphTest, WhatCannotBeRecordedIsAnErrorAndWorkGoesOn) {
  const c10::StreamGuard on_stream(models::ServingStream(kGpu));
  const torch::Tensor x = at::ones({10}, at::device(kGpu));
  const auto graph = models::GpuGraph::Record(kGpu, [&] { (void)x.sum().item<float>(); });
  EXPECT_FALSE(graph.ok());
  EXPECT_EQ(x.sum().item<float>(), 10.0f);
  const auto again = models::GpuGraph::Record(kGpu, [&] { x.add_(1); });
  ASSERT_TRUE(again.ok()) << again.status();  // the first run added one
  (*again)->Launch();
  EXPECT_EQ(x.sum().item<float>(), 30.0f);
}

class GpuEngineTest : public ::testing::TestWithParam<std::pair<const char*, bool>> {};

// A draw may hang on the last digits of a float32 logit. What the host says at temperatures that
// differ by so little that only such a draw changes.
std::vector<std::vector<int64_t>> NearAnswers(Server* host, TenantRequest request) {
  std::vector<std::vector<int64_t>> answers;
  const double temperature = request.sampling.temperature;
  for (const double factor : {1 - 2e-4, 1 + 2e-4}) {
    request.sampling.temperature = temperature * factor;
    answers.push_back(AnswersAlone(host, {request})[0]);
  }
  return answers;
}

// Every request's tokens, whatever runs beside it, with graphs and without.
TEST_P(GpuEngineTest, AnswersAsTheHost) {
  const auto [shape, graphs] = GetParam();
  Server host(shape);
  host.AddAll();
  std::vector<TenantRequest> requests = MakeRequests(host, 3);
  for (TenantRequest& request : requests) request.max_new_tokens += 6;  // so that steps repeat
  const std::vector<std::vector<int64_t>> alone = AnswersAlone(&host, requests);
  Server gpu(shape, 0, kGpu);
  gpu.AddAll();
  int64_t replays = 0;
  std::set<int64_t> near;  // requests with such a draw
  for (const TenantKernel kernel : {TenantKernel::kGrouped, TenantKernel::kLoop}) {
    // Few at a time: their widths and tenants come again.
    for (const int64_t width : {3, 40}) {
      Engine engine(*gpu.backbone, gpu.tenants,
                    {.width = width,
                     .max_rows = 40,
                     .end_tokens = kEndTokens,
                     .kernel = kernel,
                     .graphs = graphs});
      for (const TenantRequest& request : requests) ASSERT_THAT(engine.Submit(request), IsOk());
      while (!engine.idle()) {
        replays += engine.Step().graph == GraphUse::kReplayed;
        for (const TenantAnswer& answer : engine.TakeAnswers()) {
          EXPECT_THAT(answer.status, IsOk());
          const auto id = static_cast<size_t>(answer.id);
          if (answer.tokens == alone[id]) continue;
          near.insert(answer.id);
          EXPECT_THAT(NearAnswers(&host, requests[id]), ::testing::Contains(answer.tokens))
              << "request " << id << " of " << requests[id].tenant << ", width " << width;
        }
      }
    }
  }
  EXPECT_LE(near.size(), 1u);
  if (graphs) {
    EXPECT_GT(replays, 20);
  } else {
    EXPECT_EQ(replays, 0);
  }
}

TEST_P(GpuEngineTest, NoScheduleChangesAToken) {
  const auto [shape, graphs] = GetParam();
  if (!graphs) return;  // RunSchedule's engines have them
  Server host(shape);
  host.AddAll();
  const std::vector<TenantRequest> requests = MakeRequests(host, 3);
  const std::vector<std::vector<int64_t>> alone = AnswersAlone(&host, requests);
  Server gpu(shape, 0, kGpu);
  gpu.AddAll();
  for (uint32_t seed = 0; seed < 60 && !HasFailure(); ++seed)
    RunSchedule(&gpu, requests, alone, seed);
}

INSTANTIATE_TEST_SUITE_P(Shapes, GpuEngineTest,
                         ::testing::Values(std::pair("llama-tiny", false),
                                           std::pair("llama-tiny", true),
                                           std::pair("gpt2-tiny", false),
                                           std::pair("gpt2-tiny", true)));

// In bfloat16, the type of a server: the same tokens with graphs and without.
TEST(GpuEngineBFloat16Test, GraphsChangeNoToken) {
  Server server;
  const auto backbone = TinyBackbone("llama-tiny", kGpu, torch::kBFloat16);
  TenantTable tenants(*backbone, {.dtype = torch::kBFloat16});
  for (const auto& [name, recipe] : server.recipes)
    ASSERT_THAT(tenants.Add(name, *RandomTenant(recipe, *backbone, 1, kDeviation)), IsOk());
  std::vector<std::vector<std::vector<int64_t>>> answers;
  int64_t replays = 0;
  for (const bool graphs : {false, true}) {
    Engine engine(*backbone, tenants, {.width = 12, .max_rows = 64, .graphs = graphs});
    std::vector<std::string> names = tenants.names();
    names.emplace_back();
    for (size_t i = 0; i < names.size(); ++i) {
      ASSERT_THAT(engine.Submit({.id = static_cast<int64_t>(i),
                                 .tenant = names[i],
                                 .prompt = {3, 1, static_cast<int64_t>(i)},
                                 .max_new_tokens = 12}),
                  IsOk());
    }
    answers.emplace_back(names.size());
    while (!engine.idle()) {
      replays += engine.Step().graph == GraphUse::kReplayed;
      for (const TenantAnswer& answer : engine.TakeAnswers())
        answers.back()[static_cast<size_t>(answer.id)] = answer.tokens;
    }
  }
  EXPECT_EQ(answers[0], answers[1]);
  EXPECT_GT(replays, 5);
}

}  // namespace
}  // namespace graft::trainer
