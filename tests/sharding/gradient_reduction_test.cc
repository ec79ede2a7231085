// The reduction beside the backward pass: no piece starts before its gradients are final, whatever
// the method and the backbone; and started pieces give the sums of one all-reduce.
#include "sharding/gradient_reduction.h"

#include <ATen/ATen.h>
#include <ATen/core/Generator.h>
#include <gmock/gmock.h>

#include "models/weights/expected_tensors.h"
#include "sharding/buffer.h"
#include "sharding/shared_weights.h"
#include "tests/sharding/fake_model.h"
#include "tests/sharding/final_gradients.h"
#include "tests/testing/run_ranks.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FakeMethod;
using ::graft::testing::FinalGradients;
using ::graft::testing::PiecesOfAPass;
using ::graft::testing::RecordingGroup;
using ::graft::testing::RunRanks;

constexpr int kLayers = adapters::kLayers;

class FinalGradientsTest : public FinalGradients {};

TEST_P(FinalGradientsTest, AreWhatStartsInsideThePass) {
  for (const bool recompute : {false, true}) {
    SCOPED_TRACE(recompute);
    ExpectFinal(recompute);
  }
}

INSTANTIATE_TEST_SUITE_P(All, FinalGradientsTest, adapters::AllFamiliesAndMethods(),
                         adapters::RowName);

// Method `full`: weights of the backbone, tied and shared ones among them.
class FinalWeightGradients : public FinalGradients {
 protected:
  bool has_head() const { return !models::TaskHeadOf(config_).has_dense; }
  std::unique_ptr<adapters::Method> Full() const {
    std::vector<adapters::ParameterSpec> parameters;
    for (const models::PlacedTensor& tensor : models::PlacedTensors(config_, has_head()))
      parameters.push_back({tensor.name, tensor.shape, tensor.layer});
    auto full = adapters::MethodWith("full", {});
    const auto opened =
        full->Open({config_.model_type, models::ListSites(config_), kLayers, {}, parameters});
    EXPECT_TRUE(opened.ok()) << opened;
    return full;
  }
};

TEST_P(FinalWeightGradients, AreWhatStartsInsideThePass) {
  const auto full = Full();
  for (const bool recompute : {false, true}) {
    SCOPED_TRACE(recompute);
    models::BackboneOptions options;
    options.train_weights = true;
    options.recompute = recompute;
    options.language_head = has_head();
    const auto weights = Weights();
    const auto model =
        ValueOrThrow(models::BuildBackbone(config_, {0, kLayers, true, true}, *weights, options));
    adapters::AttachOptions attach;
    attach.num_layers = kLayers;
    attach.trained_weights = model->trained_weights();
    const auto set = ValueOrThrow(adapters::AdapterSet::Attach(*full, {}, attach, model->sites()));
    EXPECT_GT(set->parameters().size(), 10u);
    EXPECT_GT(PiecesOfAPass(*model, *set, Batch()), 10u);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, FinalWeightGradients,
    ::testing::Combine(::testing::Values(adapters::Family{"llama", "llama"},
                                         adapters::Family{"gpt2", "gpt2", false},
                                         adapters::Family{"roberta", "roberta", false},
                                         adapters::Family{"t5", "t5", false},
                                         adapters::Family{"t5_v1_1", "t5"}),
                       ::testing::Values(adapters::MethodRow{"none", "none", {}})),
    adapters::RowName);

// Of weights that several stages compute with the owner's gradient grows after the passes: those
// wait for all of them.
TEST_P(FinalWeightGradients, OfSharedWeightsComeLater) {
  const auto full = Full();
  PlanOptions options;
  options.stages = 2;
  options.split = {3, 1};
  const Plan plan = ValueOrThrow(MakePlan(config_, CountTrainables(*full, {}, kLayers), options));
  std::set<std::string> owned;
  RunRanks(2, [&](comm::Communicator& pipeline) {
    models::BackboneOptions backbone;
    backbone.train_weights = true;
    backbone.language_head = has_head();
    adapters::AttachOptions attach;
    attach.num_layers = kLayers;
    const auto weights = Weights();
    const auto stage = ValueOrThrow(
        Stage::Build(plan, pipeline.rank(), config_, *weights, backbone, *full, {}, attach));
    const SharedWeights shared(pipeline, *stage);
    if (pipeline.rank() == 1) {
      EXPECT_TRUE(shared.owned().empty());
      return;
    }
    owned = shared.owned();
    RecordingGroup group;
    GradientReduction reduction(stage->adapters(), kLayers, group, owned, /*piece_bytes=*/1);
    reduction.LayersDone(0);
    const size_t early = reduction.started();
    EXPECT_LE(early + owned.size(), reduction.pieces());
    for (const RecordingGroup::Started& piece : group.started) {
      for (const adapters::NamedParameter& parameter : stage->adapters().parameters()) {
        const bool is_it = piece.piece.data_ptr() == parameter.value.grad().data_ptr();
        EXPECT_FALSE(is_it && owned.contains(parameter.name)) << parameter.name;
      }
    }
  });
  std::set<std::string> expected;
  if (config_.tie_word_embeddings && has_head())
    expected.insert(config_.has_encoder()          ? "shared.weight"
                    : config_.model_type == "gpt2" ? "transformer.wte.weight"
                                                   : "model.embed_tokens.weight");
  if (config_.has_encoder())
    expected.insert("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
  EXPECT_EQ(owned, expected);
}

// A method on layers 0 to 3 and in front of them, without a backbone: 12 numbers each.
std::unique_ptr<adapters::AdapterSet> NewSet() {
  const FakeMethod method({0, 1, 2, 3, -1});
  models::SiteTable table;
  return ValueOrThrow(adapters::AdapterSet::Attach(method, method.Sites(kLayers), {}, table));
}

TEST(GradientReduction, StartsPiecesAsTheirLayersAreDone) {
  const auto set = NewSet();
  RecordingGroup group;
  GradientReduction reduction(*set, kLayers, group, {"layers.2.bias"}, /*piece_bytes=*/4 * 12);
  // Front; 3; 2's bias, which is late; 2's scale with 1's bias; 1's scale with 0's bias; 0's scale.
  EXPECT_EQ(reduction.pieces(), 6u);
  std::vector<size_t> started;
  for (int layer = 3; layer >= 0; --layer) {
    reduction.LayersDone(layer);
    started.push_back(reduction.started());
  }
  EXPECT_THAT(started, ::testing::ElementsAre(1u, 1u, 2u, 4u));
  reduction.LayersDone(0);
  reduction.Finish();
  EXPECT_EQ(group.started.size(), 6u);
  reduction.Finish();
  EXPECT_EQ(group.started.size(), 12u);
}

// However the ranks' passes went, the sums are the same, bit for bit.
TEST(GradientReduction, GivesTheSumsOfOneAllReduce) {
  RunRanks(3, [](comm::Communicator& group) {
    const auto set = NewSet();
    const auto fill = [&] {
      at::Generator random = at::detail::createCPUGenerator(static_cast<uint64_t>(group.rank()));
      set->gradients().copy_(at::randn(set->size(), random));
    };
    fill();
    torch::Tensor expected = set->gradients().clone();
    group.AllReduce(BufferOf(expected), comm::ReduceOp::kSum);
    for (const int64_t piece_bytes : {int64_t{1}, int64_t{64}, GradientReduction::kPieceBytes}) {
      GradientReduction reduction(*set, kLayers, group, {}, piece_bytes);
      for (int step = 0; step < 2; ++step) {
        fill();
        for (int layer = 3; layer > group.rank(); --layer) reduction.LayersDone(layer);
        reduction.Finish();
        EXPECT_TRUE(at::equal(set->gradients(), expected)) << piece_bytes;
      }
    }
  });
}

TEST(GradientReduction, OfOneRankDoesNothing) {
  RunRanks(1, [](comm::Communicator& group) {
    const auto set = NewSet();
    set->gradients().fill_(3);
    GradientReduction reduction(*set, kLayers, group);
    reduction.LayersDone(0);
    reduction.Finish();
    EXPECT_EQ(reduction.pieces(), 0u);
    EXPECT_TRUE(at::equal(set->gradients(), at::full({set->size()}, 3.0f)));
  });
}

}  // namespace
}  // namespace graft::sharding
