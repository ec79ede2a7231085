// Against the numbers printed in performance.md 1.
#include "sharding/cost_model.h"

#include <gtest/gtest.h>

#include "tests/sharding/shapes.h"

namespace graft::sharding {
namespace {

TEST(CostModel, MatmulParameters) {
  EXPECT_NEAR(MatmulParameters(SmolLM135M()), 0.1345e9, 0.00005e9);
  EXPECT_NEAR(MatmulParameters(Llama2_7B()), 6.607e9, 0.0005e9);
  EXPECT_NEAR(MatmulParameters(Llama3_8B()), 7.505e9, 0.0005e9);
  EXPECT_NEAR(MatmulParameters(Llama3_70B()), 69.50e9, 0.005e9);
  EXPECT_NEAR(MatmulParameters(Llama3_405B()), 403.7e9, 0.05e9);
}

TEST(CostModel, AllParametersEqualThePublishedCounts) {
  const models::ModelConfig smol = SmolLM135M();
  EXPECT_EQ(smol.num_layers * LayerParameters(smol) + HeadParameters(smol), 134515008);
  const models::ModelConfig llama = Llama2_7B();
  EXPECT_EQ(llama.num_layers * LayerParameters(llama) + HeadParameters(llama) +
                EmbeddingParameters(llama),
            6738415616);
  // Qwen2-0.5B: biases on q, k, v.
  models::ModelConfig qwen = Shape(896, 24, 14, 2, 4864, 151936, true);
  qwen.qkv_bias = true;
  EXPECT_EQ(qwen.num_layers * LayerParameters(qwen) + HeadParameters(qwen), 494032768);
}

// google-t5/t5-base: two stacks, tables, the tied embedding once.
models::ModelConfig T5Base() {
  models::ModelConfig t5 = Shape(768, 24, 12, 12, 3072, 32128, true);
  t5.encoder_layers = 12;
  t5.gated_ffn = false;
  t5.relative_buckets = 32;
  return t5;
}

TEST(CostModel, EncoderDecoder) {
  const models::ModelConfig t5 = T5Base();
  EXPECT_EQ(LayersParameters(t5, 0, 24) + EmbeddingParameters(t5) + HeadParameters(t5) -
                HeadMatmulParameters(t5),
            222903552);
  // An encoder's layer runs on the input's rows, a decoder's on the target's, but for the keys and
  // values of its cross attention.
  const double attention = 4.0 * 768 * 768, ffn = 2.0 * 768 * 3072;
  EXPECT_DOUBLE_EQ(LayerForwardFlop(t5, 0, 400, 0.25),
                   0.75 * (2 * (attention + ffn) + 4.0 * 300 * 768));
  EXPECT_DOUBLE_EQ(
      LayerForwardFlop(t5, 12, 400, 0.25),
      0.25 * (2 * (1.5 * attention + ffn) + (2.0 * 100 + 4.0 * 300) * 768) + 0.75 * attention);
}

TEST(CostModel, FlopPerToken) {
  const models::ModelConfig smol = SmolLM135M();
  WorkShape work;
  work.sequence_length = 256;
  work.adapter_parameters = LoraParameters(smol, 8);
  EXPECT_EQ(work.adapter_parameters, 2442240);
  EXPECT_NEAR(TrainingFlopPerToken(smol, work), 0.584e9, 0.0005e9);

  const double p = static_cast<double>(MatmulParameters(smol));
  const double a = 2.0 * 256 * 576 * 30;
  work.adapter_parameters = 0;
  EXPECT_DOUBLE_EQ(TrainingFlopPerToken(smol, work), 4 * p + 3.5 * a);
  work.recompute = true;
  const double head = static_cast<double>(HeadMatmulParameters(smol));
  EXPECT_DOUBLE_EQ(TrainingFlopPerToken(smol, work), 6 * p + 4.5 * a - 2 * head);
}

TEST(CostModel, FrozenPrefixSavesAboutHalfOfItsShare) {
  const models::ModelConfig config = Llama2_7B();
  WorkShape work;
  work.sequence_length = 512;
  const double all = TrainingFlopPerToken(config, work);
  for (int k : {8, 16, 24, 32}) {
    work.first_trained_layer = k;
    EXPECT_NEAR(TrainingFlopPerToken(config, work) / all, 1 - k / 64.0, 0.02) << k;
  }
}

TEST(CostModel, HeadShareOfFlop) {
  auto share = [](const models::ModelConfig& config) {
    WorkShape with, without;
    without.head_share = 0;
    return 1 - TrainingFlopPerToken(config, without) / TrainingFlopPerToken(config, with);
  };
  EXPECT_NEAR(share(SmolLM135M()), 0.21, 0.005);
  EXPECT_NEAR(share(Llama3_8B()), 0.07, 0.005);
  EXPECT_NEAR(share(Llama2_7B()), 0.02, 0.005);
}

TEST(CostModel, LeanBytesPerTokenAndLayer) {
  EXPECT_NEAR(LeanElementBytes(SmolLM135M(), 2), 11.5e3, 50);
  EXPECT_NEAR(LeanElementBytes(Llama2_7B(), 2), 93.2e3, 50);
  EXPECT_NEAR(LeanElementBytes(Llama3_8B(), 2), 94.2e3, 50);
  EXPECT_NEAR(LeanElementBytes(Llama3_70B(), 2), 184e3, 500);
  EXPECT_NEAR(LeanElementBytes(Llama3_405B(), 2), 348e3, 500);
}

TEST(CostModel, MemoryOfOneRank) {
  const models::ModelConfig smol = SmolLM135M();
  RankPart part;
  part.layers = part.trained_layers = 30;
  part.embed = part.head = true;
  part.adapter_parameters = 2442240;
  part.in_flight = 1;
  MemoryShape shape;
  shape.element_bytes = 4;
  shape.micro_batch_tokens = 1024;
  const RankMemory memory = MemoryOfRank(smol, part, shape);
  EXPECT_EQ(memory.frozen, 4.0 * 134515008);  // the tied table once
  EXPECT_EQ(memory.adapters, 28.0 * 2442240);
  EXPECT_EQ(memory.activations, 1024.0 * 30 * (2 * 11520 + 44));
  EXPECT_EQ(memory.boundaries, 0);
  EXPECT_EQ(memory.head, 341.0 * 49152 * 4);  // 64 MiB of logits
  EXPECT_EQ(memory.workspace, 1024.0 * 4 * 4 * (576 + 1536));
  EXPECT_EQ(memory.total(), memory.frozen + memory.adapters + memory.activations + memory.head);

  part.in_flight = 4;
  shape.recompute = true;
  part.boundaries = true;
  const RankMemory recomputed = MemoryOfRank(smol, part, shape);
  EXPECT_EQ(recomputed.activations, 4.0 * 1024 * 30 * 4 * 576 + 1024.0 * (2 * 11520 + 44));
  EXPECT_EQ(recomputed.boundaries, 4.0 * 1024 * 576 * 4);

  shape.element_bytes = 2;
  shape.packed_twice = true;
  const double matmul = static_cast<double>(MatmulParameters(smol));
  part.embed = false;
  EXPECT_EQ(MemoryOfRank(smol, part, shape).frozen, 2.0 * (2 * matmul + 61 * 576));
  // The table is also looked up as it is stored.
  part.embed = true;
  EXPECT_EQ(MemoryOfRank(smol, part, shape).frozen, 2.0 * (2 * matmul + 61 * 576 + 49152 * 576));
}

TEST(CostModel, WhatAdaptersAdd) {
  const models::ModelConfig smol = SmolLM135M();
  RankPart part;
  part.layers = part.trained_layers = 30;
  part.in_flight = 2;
  part.adapter_parameters = 1000;
  MemoryShape shape;
  shape.element_bytes = 2;
  shape.micro_batch_tokens = 10;
  const RankMemory bare = MemoryOfRank(smol, part, shape);
  part.kept_per_token = 30 * 56;
  EXPECT_EQ(MemoryOfRank(smol, part, shape).activations - bare.activations, 2 * 10.0 * 30 * 56 * 2);
  // Recomputed, they are there of one layer at a time.
  shape.recompute = true;
  const double recomputed = MemoryOfRank(smol, part, shape).activations;
  part.kept_per_token = 0;
  EXPECT_EQ(recomputed - MemoryOfRank(smol, part, shape).activations, 10.0 * 56 * 2);
  // The copy for checkpoints is dealt to the replicas, and is in host memory.
  EXPECT_EQ(bare.adapters, 28000);
  shape.replicas = 4;
  EXPECT_EQ(MemoryOfRank(smol, part, shape).adapters, 19000);
  shape.on_gpu = true;
  EXPECT_EQ(MemoryOfRank(smol, part, shape).adapters, 16000);
}

TEST(CostModel, QuantisedAndSharedMatrices) {
  const models::ModelConfig llama = Llama2_7B();
  RankPart part;
  part.layers = 32;
  part.embed = part.head = true;
  MemoryShape shape;
  shape.element_bytes = 2;
  shape.packed_twice = true;
  const double layers = 32.0 * static_cast<double>(LayerMatmulParameters(llama)),
               head = static_cast<double>(HeadMatmulParameters(llama));
  // Embedding, head in both packed forms, norms.
  const double rest = 2.0 * (3 * head + 65 * 4096);
  EXPECT_NEAR(MemoryOfRank(llama, part, shape).frozen, 2 * 2 * layers + rest, 1);
  shape.quantize = models::Quantization::kNf4;
  EXPECT_NEAR(MemoryOfRank(llama, part, shape).frozen, 0.51587 * layers + rest, 1e-4 * layers);
  shape.quantize = models::Quantization::kInt8;
  EXPECT_NEAR(MemoryOfRank(llama, part, shape).frozen, 1.0008 * layers + rest, 1e-3 * layers);
  EXPECT_EQ(MemoryOfRank(llama, part, shape).gathered, 0);

  shape.quantize = models::Quantization::kNone;
  shape.shards = 4;
  const RankMemory shared = MemoryOfRank(llama, part, shape);
  EXPECT_NEAR(shared.frozen, 2 * layers / 4 + rest, 1);
  EXPECT_NEAR(shared.gathered, 2 * 2 * layers / 32, 1);
}

TEST(CostModel, OnAGpu) {
  const models::ModelConfig llama = Llama2_7B();
  RankPart part;
  part.layers = part.trained_layers = 32;
  part.in_flight = 1;
  part.head = true;
  MemoryShape shape;
  shape.element_bytes = 2;
  shape.micro_batch_tokens = 4096;
  const RankMemory host = MemoryOfRank(llama, part, shape);
  EXPECT_EQ(host.head, 10.0 * 524 * 32000);  // as many logits as 64 MiB hold, and a hole
  shape.on_gpu = true;
  const RankMemory gpu = MemoryOfRank(llama, part, shape);
  EXPECT_EQ(gpu.head, 6.0 * 1024 * 32000);
  EXPECT_EQ(gpu.workspace, host.workspace);
  shape.quantize = models::Quantization::kNf4;
  EXPECT_EQ(MemoryOfRank(llama, part, shape).workspace - gpu.workspace, 2.0 * 4096 * 11008);
  // A recorded pass has its own blocks and workspaces.
  shape.quantize = models::Quantization::kNone;
  shape.base_bytes = 5;
  shape.recordings = true;
  const RankMemory recorded = MemoryOfRank(llama, part, shape);
  EXPECT_EQ(recorded.recordings, 5 + gpu.activations + gpu.temporary());
  EXPECT_EQ(recorded.total() - gpu.total(), 5 + recorded.recordings);
}

TEST(CostModel, ATaskHeadNeedsNoProjection) {
  const models::ModelConfig smol = SmolLM135M();
  RankPart part;
  part.layers = part.trained_layers = 30;
  part.head = true;
  part.in_flight = 1;
  MemoryShape shape;
  shape.packed_twice = true;
  const RankMemory with = MemoryOfRank(smol, part, shape);
  shape.language_head = false;
  const RankMemory without = MemoryOfRank(smol, part, shape);
  EXPECT_EQ(with.frozen - without.frozen,
            4.0 * 2 * static_cast<double>(HeadMatmulParameters(smol)));
  EXPECT_EQ(without.head, 0);
  WorkShape work;
  work.sequence_length = 64;
  const double flop = TrainingFlopPerToken(smol, work);
  work.language_head = false;
  EXPECT_DOUBLE_EQ(flop - TrainingFlopPerToken(smol, work),
                   4.0 * static_cast<double>(HeadMatmulParameters(smol)));
}

// 6 P + 3.5 a: nothing is frozen, and every matrix has a gradient.
TEST(CostModel, FullFineTuning) {
  const models::ModelConfig smol = SmolLM135M();
  WorkShape work;
  work.sequence_length = 256;
  work.trains_backbone = true;
  const double p = static_cast<double>(MatmulParameters(smol)), a = 2.0 * 256 * 576 * 30;
  EXPECT_DOUBLE_EQ(TrainingFlopPerToken(smol, work), 6 * p + 3.5 * a);
  RankPart part;
  part.layers = part.trained_layers = 1;
  part.in_flight = 1;
  part.adapter_parameters = 1000;
  MemoryShape shape;
  shape.micro_batch_tokens = 10;
  const double lean = MemoryOfRank(smol, part, shape).activations;
  shape.trains_backbone = true;
  const RankMemory memory = MemoryOfRank(smol, part, shape);
  EXPECT_EQ(memory.frozen, 0);
  EXPECT_EQ(memory.adapters, 28000);
  EXPECT_EQ(memory.activations - lean, 10.0 * 4 * (1536 + 4 * 576));
}

TEST(CostModel, Traffic) {
  const int64_t parameters = LoraParameters(Llama2_7B(), 16);
  EXPECT_NEAR(4.0 * static_cast<double>(parameters), 160e6, 0.5e6);
  EXPECT_NEAR(AllReduceSeconds(parameters, 8, {380e9, 0}), 0.7e-3, 0.05e-3);
  EXPECT_NEAR(AllReduceSeconds(parameters, 8, {45e9, 0}), 6e-3, 0.5e-3);
  EXPECT_NEAR(AllReduceSeconds(parameters, 8, {1.1e9, 0}), 255e-3, 2e-3);
  EXPECT_EQ(AllReduceSeconds(parameters, 1, {1, 1}), 0);
  EXPECT_DOUBLE_EQ(AllReduceSeconds(0, 4, {1, 0.5}), 3.0);
  EXPECT_NEAR(static_cast<double>(BoundaryBytes(Llama2_7B(), 4096, 2)), 33.6e6, 0.1e6);
}

}  // namespace
}  // namespace graft::sharding
