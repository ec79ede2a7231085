// What every method must pass on every backbone: one row per method and family. The same list on a
// toy layer, with the methods' own settings, is in adapter_contract_test.cc; numbers are proved
// against HF transformers and PEFT in tests/oracle.
#include "tests/adapters/backbone_contract.h"

namespace graft::adapters {
namespace {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

// Frozen weights with an adapter folded in.
class MergedWeights : public models::WeightSource {
 public:
  MergedWeights(std::unique_ptr<WeightSource> frozen, const Method& method,
                const std::vector<models::SiteSpec>& matched, NamedTensors adapter)
      : frozen_(std::move(frozen)),
        method_(method),
        matched_(matched),
        adapter_(std::move(adapter)) {}
  bool Has(const std::string& name) const override { return frozen_->Has(name); }

  absl::StatusOr<Tensor> Load(const std::string& name, const std::vector<int64_t>& shape,
                              torch::Dtype dtype) override {
    Tensor loaded = ValueOrThrow(frozen_->Load(name, shape, dtype)).clone();
    for (const models::SiteSpec& site : matched_) {
      const bool is_bias = name == site.module + ".bias";
      if (!is_bias && name != site.module + ".weight") continue;
      // Merge wants both; of the one that was not asked for any values do.
      const Tensor rows = site.fan_in_fan_out && !is_bias ? loaded.t() : loaded;
      const Tensor own = site.fused() ? rows.narrow(0, site.fused_offset, site.out_features) : rows;
      Tensor weight = is_bias ? at::zeros({own.size(0), WidthInto(site)}) : own.clone();
      Tensor bias = is_bias ? own.clone() : at::zeros({own.size(0)});
      const absl::Status merged = method_.Merge(site, adapter_, &weight, &bias);
      if (!merged.ok()) return merged;
      own.copy_(is_bias ? bias : weight);
    }
    return loaded;
  }

 private:
  // Inputs of the linear: the output of a feed-forward or of attention is a site of its own there.
  int64_t WidthInto(const models::SiteSpec& site) const {
    return models::IsLinear(site.id.role) ? site.in_features : site.out_features;
  }

  std::unique_ptr<WeightSource> frozen_;
  const Method& method_;
  const std::vector<models::SiteSpec>& matched_;
  NamedTensors adapter_;
};

TEST_P(BackboneContract, StartsAsTheFrozenModel) {
  if (!row().identity) return;
  const MicroBatch batch = Samples({0, 1, 2});
  EXPECT_TRUE(at::equal(Run(*Adapt(/*trained=*/false).model, batch, true).detach(),
                        Run(*Frozen(*Weights()), batch)));
}

TEST_P(BackboneContract, CountsAreWhatIsAttached) {
  const Adapted adapted = Adapt(/*trained=*/false);
  EXPECT_EQ(adapted.set->size(), method_->CountParameters(matched_));
}

TEST_P(BackboneContract, EveryParameterLearnsAndNothingElseChanges) {
  const Adapted adapted = Adapt(/*trained=*/true);
  const MicroBatch batch = Samples({0, 1, 2});
  const Tensor before = Run(*adapted.model, batch);
  RunBackward(before);
  for (const NamedParameter& p : adapted.set->parameters()) {
    EXPECT_GT(p.value.grad().abs().max().item<float>(), 0) << p.name;
  }
  at::NoGradGuard no_grad;
  const Tensor kept = adapted.set->values().clone();
  const Tensor values = adapted.set->values();
  values.sub_(adapted.set->gradients(), 0.01);
  EXPECT_EQ(at::equal(Run(*adapted.model, batch), before), kept.numel() == 0);
  values.copy_(kept);
  EXPECT_TRUE(at::equal(Run(*adapted.model, batch), before.detach()));
}

// There is no padding: a sample's rows are those that it has alone, whatever is beside it.
TEST_P(BackboneContract, ASampleIsTheSameAloneAndBesideOthers) {
  const Adapted adapted = Adapt(/*trained=*/true);
  at::NoGradGuard no_grad;
  const MicroBatch together = Samples({2, 0, 1});
  const Tensor h = Run(*adapted.model, together, /*training=*/true);
  for (const size_t place : {0u, 1u, 2u}) {
    const MicroBatch alone = Samples({together.segments[place].sample_id});
    EXPECT_LT(
        RelativeError(Run(*adapted.model, alone, /*training=*/true), RowsOf(h, together, place)),
        1e-5);
  }
}

// Forward of both, then backward of both in the other order: as 1F1B interleaves them.
TEST_P(BackboneContract, MicroBatchesNeverMix) {
  if (matched_.empty()) return;
  const Adapted whole = Adapt(/*trained=*/true), split = Adapt(/*trained=*/true);
  const MicroBatch all = Samples({0, 1, 2}), first = Samples({0}), second = Samples({1, 2});
  RunBackward(Run(*whole.model, all, /*training=*/true));
  const Tensor y1 = Run(*split.model, first, /*training=*/true);
  const Tensor y2 = Run(*split.model, second, /*training=*/true);
  RunBackward(y2);
  RunBackward(y1);
  EXPECT_LT(RelativeError(split.set->gradients(), whole.set->gradients()), 1e-4);
}

TEST_P(BackboneContract, RecomputationGivesTheSameGradients) {
  if (matched_.empty()) return;
  const MicroBatch batch = Samples({0, 1, 2});
  const Adapted kept = Adapt(/*trained=*/true), again = Adapt(/*trained=*/true, /*recompute=*/true);
  RunBackward(Run(*kept.model, batch, /*training=*/true));
  RunBackward(Run(*again.model, batch, /*training=*/true));
  EXPECT_GT(kept.set->gradients().abs().max().item<float>(), 0);
  EXPECT_LT(RelativeError(again.set->gradients(), kept.set->gradients()), 1e-5);
}

TEST_P(BackboneContract, MergedEqualsUnmerged) {
  if (!row().merges) return;
  for (const models::SiteSpec& site : matched_) {
    // A bias where the model has none is a matter of its config: tests/oracle/export_test.py.
    if (method_->MergeAddsBias(site) && !config_.layer_norm) return;
  }
  const Adapted adapted = Adapt(/*trained=*/true);
  NamedTensors tensors;
  for (const NamedParameter& p : adapted.set->parameters()) {
    tensors.emplace_back(p.name, p.value.detach());
  }
  at::NoGradGuard no_grad;
  MergedWeights weights(Weights(), *method_, matched_, tensors);
  const MicroBatch batch = Samples({0, 1, 2});
  EXPECT_LT(RelativeError(Run(*Frozen(weights), batch), Run(*adapted.model, batch)), 1e-5);
}

// What a method makes of a prompt comes from the prompt alone (methods.md 1.3), and an answer
// reaches neither the rows in front of it nor an encoder.
TEST_P(BackboneContract, AnswersDoNotReachThePrompt) {
  const Adapted adapted = Adapt(/*trained=*/true);
  at::NoGradGuard no_grad;
  const MicroBatch batch = Samples({1, 2});
  MicroBatch changed = batch;
  MicroBatch text = batch.source == nullptr ? batch : *batch.source;
  for (const Segment& segment : text.segments) {
    const auto answer = static_cast<size_t>(segment.prompt_begin() + segment.prompt_length);
    const auto end = static_cast<size_t>(segment.begin + segment.length);
    for (size_t i = answer; i < end; ++i) text.tokens[i] = 100;
  }
  if (batch.source == nullptr)
    changed.tokens = text.tokens;
  else
    changed.source = std::make_shared<const MicroBatch>(text);
  models::SequenceStates said, other;
  const Tensor before = Run(*adapted.model, batch, false, &said);
  const Tensor after = Run(*adapted.model, changed, false, &other);
  EXPECT_FALSE(at::equal(before, after));
  for (const RequestScales& scales : adapted.set->request_scales()) {
    // Above its first layer the prompt's rows of an encoder have read all of the text.
    if (!(config_.causal && !config_.has_encoder()) && scales.sites[0].id.layer > 0) continue;
    for (const Segment& segment : batch.segments) {
      const Tensor state = said.Get(scales.owner.get(), segment.sample_id);
      ASSERT_TRUE(state.defined());
      EXPECT_TRUE(at::equal(state, other.Get(scales.owner.get(), segment.sample_id)));
    }
  }
  models::SiteContext one, two;
  one.batch = &batch;
  two.batch = &changed;
  const bool causal = config_.causal && !config_.has_encoder();
  const Tensor left = causal ? before : adapted.model->Embed(one);
  const Tensor right = causal ? after : adapted.model->Embed(two);
  for (const Segment& segment : text.segments) {
    const int64_t rows = segment.virtual_rows + segment.prompt_length;
    EXPECT_TRUE(
        at::equal(left.narrow(0, segment.begin, rows), right.narrow(0, segment.begin, rows)));
  }
}

TEST_P(BackboneContract, ADecodersTokensReachNothingInFrontOfThem) {
  if (!config_.has_encoder()) return;
  const Adapted adapted = Adapt(/*trained=*/true);
  at::NoGradGuard no_grad;
  const MicroBatch batch = Samples({1, 2});
  MicroBatch changed = batch;
  for (const Segment& segment : batch.segments) {
    changed.tokens[static_cast<size_t>(segment.begin + 2)] = 100;
  }
  const Tensor before = Run(*adapted.model, batch), after = Run(*adapted.model, changed);
  const int64_t source = batch.source->num_rows();
  EXPECT_FALSE(at::equal(before, after));
  EXPECT_TRUE(at::equal(before.narrow(0, 0, source), after.narrow(0, 0, source)));
  for (const Segment& segment : batch.segments) {
    const int64_t begin = source + segment.begin;
    EXPECT_TRUE(at::equal(before.narrow(0, begin, 2), after.narrow(0, begin, 2)));
  }
}

// Generation: the prompt whole, then a token at a time with what was kept, is one full pass.
TEST_P(BackboneContract, GoingOnWithWhatWasKeptEqualsOneFullPass) {
  if (!config_.causal) return;
  const Adapted adapted = Adapt(/*trained=*/true);
  at::NoGradGuard no_grad;
  const MicroBatch full = Samples({2});
  const Segment whole = full.segments[0];
  const bool pair = config_.has_encoder();
  const Tensor want =
      Run(*adapted.model, full).narrow(0, pair ? full.source->num_rows() : 0, whole.length);
  const auto cache = adapted.model->NewKvCache();
  models::SequenceStates states;
  std::vector<Tensor> got;
  int64_t length = pair ? 1 : whole.virtual_rows + whole.prompt_length;
  for (int64_t begin = 0; begin < whole.length; begin += length, length = 1) {
    MicroBatch part;
    part.segments = {{whole.sample_id, 0, length}};
    if (begin == 0) {
      part.segments[0].prompt_length = whole.prompt_length;
      part.segments[0].virtual_rows = whole.virtual_rows;
      part.source = full.source;
    } else if (pair) {
      MicroBatch nothing;
      nothing.segments = {{whole.sample_id, 0, 0}};
      part.source = std::make_shared<const MicroBatch>(nothing);
    }
    part.tokens.assign(full.tokens.begin() + begin, full.tokens.begin() + begin + length);
    part.positions.assign(full.positions.begin() + begin, full.positions.begin() + begin + length);
    const Tensor h = Run(*adapted.model, part, false, &states, cache.get());
    got.push_back(h.narrow(0, h.size(0) - length, length));
  }
  EXPECT_LT(RelativeError(at::cat(got), want), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(All, BackboneContract, AllFamiliesAndMethods(), RowName);

}  // namespace
}  // namespace graft::adapters
