// What every backbone must pass, one row per family: packing, ranges, recomputation, decoding, and
// what autograd keeps. Numbers are proved against HF transformers in tests/oracle.
#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <algorithm>
#include <set>

#include "base/status.h"
#include "models/backbone.h"
#include "models/weights/weight_source.h"
#include "tests/models/tiny_config.h"

namespace graft::models {
namespace {

using torch::Tensor;

std::unique_ptr<Backbone> Build(const ModelConfig& config, LayerRange range,
                                bool recompute = false) {
  BackboneOptions options;
  options.recompute = recompute;
  const auto weights = SyntheticWeights(config, 3);
  return ValueOrThrow(BuildBackbone(config, range, *weights, options));
}

std::unique_ptr<Backbone> BuildWhole(const ModelConfig& config, bool recompute = false) {
  return Build(config, {0, static_cast<int>(config.num_layers), true, true}, recompute);
}

MicroBatch MakeBatch(const std::vector<int64_t>& lengths) {
  MicroBatch batch;
  int64_t begin = 0;
  for (size_t s = 0; s < lengths.size(); ++s) {
    batch.segments.push_back({static_cast<int64_t>(s), begin, lengths[s], 1});
    for (int64_t t = 0; t < lengths[s]; ++t) {
      batch.tokens.push_back((7 * t + 13 * static_cast<int64_t>(s)) % 101);
      batch.positions.push_back(t);
      if (t == 0) continue;
      batch.target_rows.push_back(begin + t - 1);
      batch.target_ids.push_back(batch.tokens.back());
    }
    begin += lengths[s];
  }
  return batch;
}

class BackboneTest : public ::testing::TestWithParam<const char*> {
 protected:
  static ModelConfig Config(int64_t layers, int64_t hidden = 64) {
    return TinyConfig(GetParam(), layers, hidden);
  }
};

double Loss(Backbone& model, const MicroBatch& batch) {
  SiteContext context;
  context.batch = &batch;
  return model.LossSum(model.Layers(model.Embed(context), context), context).item<double>();
}

// Adds a trained vector to a site's output: the smallest possible method.
class AddVector : public SiteHook {
 public:
  explicit AddVector(Tensor vector) : vector_(std::move(vector)) {}
  Tensor EditOutput(const SiteInput&, Tensor y, SiteContext&) override { return y + vector_; }

 private:
  Tensor vector_;
};

Tensor HookEveryLayer(Backbone& model, Role role, int64_t width) {
  Tensor vector = at::zeros({width}).requires_grad_(true);
  for (int layer = model.range().first_layer; layer < model.range().end_layer(); ++layer) {
    model.sites().Add({layer, role}, std::make_shared<AddVector>(vector));
  }
  return vector;
}

// What a soft prompt starts from: the `embed` site's view, without the hooks that hang there and
// without positions.
TEST_P(BackboneTest, WordEmbeddingsAreTheRowsWithoutHooks) {
  const ModelConfig config = Config(2);
  const auto model = Build(config, {0, 1, true, false});
  model->sites().Add({2, Role::kEmbed}, std::make_shared<AddVector>(at::ones({64})));
  const bool is_gpt2 = config.model_type == "gpt2";
  const Tensor table = ValueOrThrow(SyntheticWeights(config, 3)->Load(
      is_gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight", {101, 64}, at::kFloat));
  const std::vector<int64_t> ids = {5, 0, 100, 5};
  EXPECT_TRUE(at::equal(model->WordEmbeddings(ids), table.index_select(0, at::tensor(ids))));
}

TEST_P(BackboneTest, PackedLossIsTheSumOverSamples) {
  const auto model = BuildWhole(Config(3));
  double alone = 0;
  for (const int64_t length : {5, 9, 1, 12}) {
    MicroBatch one = MakeBatch({5, 9, 1, 12});
    const std::vector<int64_t> lengths{5, 9, 1, 12};
    const size_t index =
        static_cast<size_t>(std::find(lengths.begin(), lengths.end(), length) - lengths.begin());
    const Segment segment = one.segments[index];
    MicroBatch single;
    single.segments = {{segment.sample_id, 0, length, 1}};
    for (int64_t t = 0; t < length; ++t) {
      single.tokens.push_back(one.tokens[static_cast<size_t>(segment.begin + t)]);
      single.positions.push_back(t);
      if (t > 0) {
        single.target_rows.push_back(t - 1);
        single.target_ids.push_back(single.tokens.back());
      }
    }
    alone += Loss(*model, single);
  }
  EXPECT_NEAR(Loss(*model, MakeBatch({5, 9, 1, 12})), alone, 1e-6 * alone);
}

TEST_P(BackboneTest, PartsInSequenceEqualTheWhole) {
  const ModelConfig config = Config(4);
  const MicroBatch batch = MakeBatch({6, 4});
  const auto whole = BuildWhole(config);
  const auto first = Build(config, {0, 1, true, false}),
             middle = Build(config, {1, 2, false, false}),
             last = Build(config, {3, 1, false, true});
  SiteContext context;
  context.batch = &batch;
  Tensor h = first->Layers(first->Embed(context), context);
  h = last->Layers(middle->Layers(h, context), context);
  EXPECT_EQ(last->LossSum(h, context).item<double>(), Loss(*whole, batch));
  EXPECT_EQ(first->frozen_parameters() + middle->frozen_parameters() + last->frozen_parameters(),
            CountParameters(config));
}

TEST_P(BackboneTest, RecomputationGivesTheSameGradients) {
  const MicroBatch batch = MakeBatch({6, 4});
  Tensor gradient[2];
  for (const bool recompute : {false, true}) {
    const auto model = BuildWhole(Config(3), recompute);
    const Tensor vector = HookEveryLayer(*model, Role::kFfnUp, 192);
    SiteContext context;
    context.batch = &batch;
    torch::autograd::backward(
        {model->LossSum(model->Layers(model->Embed(context), context), context)}, {});
    gradient[recompute] = vector.grad();
  }
  EXPECT_GT(gradient[0].abs().max().item<float>(), 0.0f);
  EXPECT_TRUE(at::allclose(gradient[0], gradient[1], 1e-5, 1e-7));
}

TEST_P(BackboneTest, NothingRunsBackwardBelowTheLowestTrainedSite) {
  const auto model = BuildWhole(Config(4));
  Tensor vector = at::zeros({64}).requires_grad_(true);
  model->sites().Add({2, Role::kFfnOut}, std::make_shared<AddVector>(vector));
  const MicroBatch batch = MakeBatch({6});
  SiteContext context;
  context.batch = &batch;
  const Tensor h = model->Embed(context);
  EXPECT_FALSE(h.requires_grad());
  const Tensor top = model->Layers(h, context);
  ASSERT_TRUE(top.requires_grad());
  // Walk down the graph: exactly the attention of layer 3 has a node; layers 0 to 2 have none.
  int attentions = 0;
  std::vector<torch::autograd::Node*> stack{top.grad_fn().get()};
  std::set<torch::autograd::Node*> seen;
  while (!stack.empty()) {
    torch::autograd::Node* node = stack.back();
    stack.pop_back();
    if (!seen.insert(node).second) continue;
    if (node->name().find("AttentionFunction") != std::string::npos) ++attentions;
    for (const auto& edge : node->next_edges()) {
      if (edge.function) stack.push_back(edge.function.get());
    }
  }
  EXPECT_EQ(attentions, 1);
}

TEST_P(BackboneTest, DecodingWithTheCacheEqualsOneFullPass) {
  const auto model = BuildWhole(Config(3));
  const MicroBatch full = MakeBatch({9});
  SiteContext context;
  context.batch = &full;
  at::NoGradGuard no_grad;
  const Tensor want = model->Logits(model->Layers(model->Embed(context), context), {3, 4, 8});
  const auto cache = model->NewKvCache();
  std::vector<Tensor> got;
  int64_t begin = 0;
  for (const int64_t length : {4, 1, 4}) {
    MicroBatch part;
    part.segments = {{0, 0, length, 0}};
    for (int64_t t = begin; t < begin + length; ++t) {
      part.tokens.push_back(full.tokens[static_cast<size_t>(t)]);
      part.positions.push_back(t);
    }
    SiteContext step;
    step.batch = &part;
    got.push_back(
        model->Logits(model->Layers(model->Embed(step), step, cache.get()), {length - 1}));
    begin += length;
  }
  EXPECT_TRUE(at::allclose(at::cat(got), want, 1e-4, 1e-5));
}

// Counts live CPU bytes of this thread.
class Ledger : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    live += size;
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t live = 0;
};

int64_t KeptBytes(const ModelConfig& config, int64_t tokens) {
  const auto model = BuildWhole(config);
  const Tensor vector = HookEveryLayer(*model, Role::kAttnQ, 128);
  MicroBatch batch = MakeBatch({tokens});
  SiteContext context;
  context.batch = &batch;
  {
    at::NoGradGuard no_grad;
    model->Layers(model->Embed(context), context);  // weights are packed on first use
  }
  const auto ledger = std::make_shared<Ledger>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, ledger);
  const Tensor h = model->Layers(model->Embed(context), context);
  return ledger->live;
}

TEST_P(BackboneTest, AutogradKeepsTheLeanSetAndNothingElse) {
  constexpr int64_t kTokens = 256, kWidth = 128, kFfn = 384, kHeads = 4;
  const ModelConfig config = Config(5, kWidth);
  const int64_t growth = KeptBytes(config, kTokens) - KeptBytes(Config(4, kWidth), kTokens);
  // performance.md 2.1: 2h (block input, mid-block residual) + q, k, v, attention output (2h + 2
  // h_kv) + gate, up (2f; without a gate f); fp32 statistics: one or two numbers a norm and one
  // log-sum-exp per head.
  const int64_t ffn = (config.gated_ffn ? 2 : 1) * kFfn, norms = config.layer_norm ? 4 : 2;
  const int64_t lean = 4 * kTokens * (4 * kWidth + 2 * config.kv_width() + ffn + norms + kHeads);
  EXPECT_NEAR(static_cast<double>(growth), static_cast<double>(lean),
              0.02 * static_cast<double>(lean));
}

INSTANTIATE_TEST_SUITE_P(Families, BackboneTest, ::testing::Values("llama", "gpt2"),
                         [](const auto& row) { return std::string(row.param); });

TEST(Backbones, SitesAreListedInTheFixedOrder) {
  const ModelConfig config = TinyConfig("llama", 2);
  const auto sites = ListSites(config);
  ASSERT_EQ(sites.size(), 1u + 2u * 11u);
  EXPECT_EQ(sites[1].module, "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(sites[2].out_features, 32);
  EXPECT_EQ(sites[1 + 11 + 6].module, "model.layers.1.mlp.down_proj");
  EXPECT_EQ(sites[1 + 11 + 6].in_features, 192);
}

TEST(Backbones, ParameterCountOfTheRealModels) {
  EXPECT_EQ(CountParameters(ValueOrThrow(NamedShape("smollm2-135m"))), 134515008);
  EXPECT_EQ(CountParameters(ValueOrThrow(NamedShape("llama-2-7b"))), 6738415616);
  EXPECT_EQ(CountParameters(ValueOrThrow(NamedShape("llama-8b"))), 8030261248);

  // transformers: sum of p.numel() of GPT2LMHeadModel, the tied head once.
  EXPECT_EQ(CountParameters(ValueOrThrow(NamedShape("gpt2"))), 124439808);
  EXPECT_EQ(CountParameters(ValueOrThrow(NamedShape("gpt2-medium"))), 354823168);
  EXPECT_EQ(CountParameters(ValueOrThrow(NamedShape("gpt2-large"))), 774030080);
  // RobertaModel(add_pooling_layer=False).
  EXPECT_EQ(CountParameters(ValueOrThrow(NamedShape("roberta-base"))), 124055040);
  // T5ForConditionalGeneration; v1.1 has a head of its own.
  EXPECT_EQ(CountParameters(ValueOrThrow(NamedShape("t5-small"))), 60506624);
  EXPECT_EQ(CountParameters(ValueOrThrow(NamedShape("t5-base"))), 222903552);
  EXPECT_EQ(CountParameters(ValueOrThrow(NamedShape("t5-large"))), 737668096);
  EXPECT_EQ(CountParameters(ValueOrThrow(NamedShape("t5-v1_1-base"))), 247577856);
}

TEST(Backbones, Gpt2OffersTheThirdsOfItsFusedProjection) {
  const auto sites = ListSites(TinyConfig("gpt2", 2));
  ASSERT_EQ(sites.size(), 1u + 2u * 10u);
  for (size_t part = 0; part < 3; ++part) {
    const SiteSpec& site = sites[1 + part];
    EXPECT_EQ(site.id.role, static_cast<Role>(part));
    EXPECT_EQ(site.module, "transformer.h.0.attn.c_attn");
    EXPECT_EQ(site.fused_features, 192);
    EXPECT_EQ(site.fused_offset, 64 * static_cast<int64_t>(part));
    EXPECT_EQ(site.out_features, 64);
    EXPECT_TRUE(site.fan_in_fan_out);
  }
  for (const SiteSpec& site : sites) EXPECT_NE(site.id.role, Role::kFfnGate);
}

// An encoder has no language-model head: its parts are compared by the hidden state.
TEST(Backbones, RobertaInPartsAndRecomputedIsTheSame) {
  const ModelConfig config = TinyConfig("roberta", 4);
  const MicroBatch batch = MakeBatch({6, 4});
  const auto whole = BuildWhole(config), again = BuildWhole(config, /*recompute=*/true);
  const auto first = Build(config, {0, 1, true, false}), last = Build(config, {1, 3, false, true});
  SiteContext context;
  context.batch = &batch;
  const Tensor vector = HookEveryLayer(*whole, Role::kAttnQ, 64);
  const Tensor other = HookEveryLayer(*again, Role::kAttnQ, 64);
  const Tensor h = whole->Layers(whole->Embed(context), context);
  const Tensor parts = last->Layers(first->Layers(first->Embed(context), context), context);
  EXPECT_TRUE(at::equal(h.detach(), parts));
  const Tensor seed = at::randn_like(parts);
  torch::autograd::backward({h}, {seed});
  torch::autograd::backward({again->Layers(again->Embed(context), context)}, {seed});
  EXPECT_GT(vector.grad().abs().max().item<float>(), 0.0f);
  EXPECT_TRUE(at::allclose(vector.grad(), other.grad(), 1e-4, 1e-6));
  EXPECT_EQ(first->frozen_parameters() + last->frozen_parameters(), CountParameters(config));
}

TEST(Backbones, RobertaSeesInBothDirectionsInsideASampleAlone) {
  const auto model = BuildWhole(TinyConfig("roberta", 2));
  const auto run = [&](const MicroBatch& batch) {
    SiteContext context;
    context.batch = &batch;
    at::NoGradGuard no_grad;
    return model->Layers(model->Embed(context), context);
  };
  const MicroBatch batch = MakeBatch({6, 4});
  MicroBatch changed = batch;
  changed.tokens[5] = 100;  // the first sample's last token
  const Tensor a = run(batch), b = run(changed);
  EXPECT_FALSE(at::equal(a[0], b[0]));
  EXPECT_TRUE(at::equal(a.narrow(0, 6, 4), b.narrow(0, 6, 4)));
}

MicroBatch MakePairs(const std::vector<int64_t>& inputs, const std::vector<int64_t>& targets) {
  MicroBatch batch = MakeBatch(targets);
  batch.source = std::make_shared<const MicroBatch>(MakeBatch(inputs));
  return batch;
}

TEST(Backbones, T5InPartsAndRecomputedIsTheSame) {
  const ModelConfig config = TinyConfig("t5", 4);
  const MicroBatch batch = MakePairs({6, 14}, {9, 4});
  const auto whole = BuildWhole(config), again = BuildWhole(config, /*recompute=*/true);
  // Cuts inside the encoder and inside the decoder.
  const auto first = Build(config, {0, 1, true, false}),
             middle = Build(config, {1, 2, false, false}),
             last = Build(config, {3, 1, false, true});
  SiteContext context;
  context.batch = &batch;
  Tensor h = first->Layers(first->Embed(context), context);
  EXPECT_EQ(h.size(0), batch.boundary_rows());
  h = last->Layers(middle->Layers(h, context), context);
  const double parts = last->LossSum(h, context).item<double>();
  EXPECT_EQ(parts, Loss(*whole, batch));
  const Tensor vector = HookEveryLayer(*whole, Role::kAttnV, 64);
  const Tensor other = HookEveryLayer(*again, Role::kAttnV, 64);
  for (Backbone* model : {whole.get(), again.get()}) {
    torch::autograd::backward(
        {model->LossSum(model->Layers(model->Embed(context), context), context)}, {});
  }
  EXPECT_GT(vector.grad().abs().max().item<float>(), 0.0f);
  EXPECT_TRUE(at::allclose(vector.grad(), other.grad(), 1e-4, 1e-6));
}

TEST(Backbones, T5SamplesOfABatchNeverMix) {
  const auto model = BuildWhole(TinyConfig("t5", 4));
  const MicroBatch together = MakePairs({6, 14}, {9, 4});
  double alone = 0;
  for (const size_t s : {0u, 1u}) {
    const auto only = [s](const MicroBatch& from) {
      const Segment segment = from.segments[s];
      MicroBatch one;
      one.segments = {{segment.sample_id, 0, segment.length, 1}};
      for (int64_t t = 0; t < segment.length; ++t) {
        one.tokens.push_back(from.tokens[static_cast<size_t>(segment.begin + t)]);
        one.positions.push_back(t);
        if (t == 0) continue;
        one.target_rows.push_back(t - 1);
        one.target_ids.push_back(one.tokens.back());
      }
      return one;
    };
    MicroBatch one = only(together);
    one.source = std::make_shared<const MicroBatch>(only(*together.source));
    alone += Loss(*model, one);
  }
  EXPECT_NEAR(Loss(*model, together), alone, 1e-6 * alone);
}

TEST(Backbones, T5SitesOfBothStacks) {
  const ModelConfig config = TinyConfig("t5", 4);
  std::set<std::string> modules;
  for (const SiteSpec& site : ListSites(config)) {
    if (IsLinear(site.id.role)) modules.insert(site.module);
  }
  EXPECT_EQ(modules.size(), 2u * 7u + 2u * 11u);
  EXPECT_EQ(modules.count("encoder.block.1.layer.1.DenseReluDense.wi_1"), 1u);
  EXPECT_EQ(modules.count("decoder.block.0.layer.1.EncDecAttention.k"), 1u);
  EXPECT_EQ(modules.count("decoder.block.1.layer.2.DenseReluDense.wo"), 1u);
  const auto model = BuildWhole(config);
  const std::vector<int64_t> ids = {5, 0, 100};
  EXPECT_EQ(model->WordEmbeddings(ids).size(0), 3);
}

}  // namespace
}  // namespace graft::models
