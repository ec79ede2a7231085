// Every method on every backbone, small: the fixture and its rows. Used by
// backbone_contract_test.cc, and by the tests that compare devices.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "absl/strings/str_cat.h"
#include "models/backbone.h"
#include "models/weights/weight_source.h"
#include "tests/adapters/testing.h"
#include "tests/models/tiny_config.h"
#include "tests/testing/temp_folder.h"

namespace graft::adapters {

using models::MicroBatch;
using models::Segment;
using torch::Tensor;

inline constexpr int kLayers = 4;
inline constexpr int64_t kVocab = 101;

struct MethodRow {
  std::string title;
  std::string method;
  FieldList fields;
  bool identity = true;  // starts as the frozen model
  bool merges = true;
};

struct Family {
  std::string title, model_type;
  bool gated_ffn = true;
};

inline void PrintTo(const MethodRow& row, std::ostream* out) { *out << row.title; }
inline void PrintTo(const Family& family, std::ostream* out) { *out << family.title; }

class BackboneContract : public ::testing::TestWithParam<std::tuple<Family, MethodRow>> {
 protected:
  struct Adapted {
    std::unique_ptr<models::Backbone> model;
    std::unique_ptr<AdapterSet> set;
  };

  static const Family& family() { return std::get<0>(GetParam()); }
  static const MethodRow& row() { return std::get<1>(GetParam()); }

  void SetUp() override {
    config_ = models::TinyConfig(family().model_type, kLayers, /*hidden=*/32);
    if (config_.has_encoder() && !family().gated_ffn) {
      config_.gated_ffn = false;
      config_.activation = "relu";
      config_.tie_word_embeddings = config_.scale_decoder_outputs = true;
    }
    FieldList fields = row().fields;
    if (row().method == "fanlora") fields.emplace_back("setting", WriteSetting());
    method_ = MethodWith(row().method, fields);
    const auto sites = models::ListSites(config_);
    const absl::Status opened = method_->Open({config_.model_type, sites, kLayers});
    ASSERT_TRUE(opened.ok()) << opened;
    const auto matched = method_->MatchSites(sites);
    ASSERT_TRUE(matched.ok()) << matched.status();
    matched_ = *matched;
  }

  // A layer of each stack of an encoder-decoder model.
  std::string WriteSetting() const {
    return folder_.Write(
        "setting.json",
        absl::StrCat(R"({"format": "graft-setting", "version": 1, "model_type": ")",
                     config_.model_type, R"(", "num_layers": )", kLayers, R"(, "selection": {},
        "keep": [{"layer": 0, "roles": ["ffn.down", "attn.q"], "rank": 3, "alpha": 4.5},
                 {"layer": 3, "roles": ["attn.v"], "rank": 2, "alpha": 2}]})"));
  }

  std::unique_ptr<models::WeightSource> Weights() const {
    return models::SyntheticWeights(config_, 3);
  }

  std::unique_ptr<models::Backbone> Frozen(models::WeightSource& weights,
                                           bool recompute = false) const {
    models::BackboneOptions options;
    options.recompute = recompute;
    options.device = device_;
    options.language_head = !models::TaskHeadOf(config_).has_dense;
    return ValueOrThrow(models::BuildBackbone(config_, {0, kLayers, true, true}, weights, options));
  }

  // `trained`: away from the start, as after some steps.
  Adapted Adapt(bool trained, bool recompute = false) const {
    Adapted adapted;
    adapted.model = Frozen(*Weights(), recompute);
    AttachOptions options;
    options.seed = 3;
    options.num_layers = kLayers;
    options.device = device_;
    options.vocab_size = kVocab;
    options.word_embeddings = [&](const auto& ids) { return adapted.model->WordEmbeddings(ids); };
    adapted.set =
        ValueOrThrow(AdapterSet::Attach(*method_, matched_, options, adapted.model->sites()));
    if (trained) Disturb(*adapted.set);
    return adapted;
  }

  // The same numbers on every device.
  static void Disturb(AdapterSet& set) {
    at::manual_seed(1);
    at::NoGradGuard no_grad;
    for (const NamedParameter& p : set.parameters())
      p.value.add_(at::randn(p.value.sizes()).to(p.value.device()), 0.1);
  }

  // Rows of one sample: tokens that differ between samples, `prompt` of them behind `front` virtual
  // rows.
  static void Append(int64_t id, int64_t front, int64_t text, int64_t prompt, MicroBatch* batch) {
    Segment segment;
    segment.sample_id = id;
    segment.begin = batch->num_rows();
    segment.length = front + text;
    segment.prompt_length = prompt;
    segment.virtual_rows = front;
    for (int64_t t = 0; t < segment.length; ++t) {
      batch->tokens.push_back(t < front ? 0 : (7 * t + 13 * id + 5) % kVocab);
      batch->positions.push_back(t);
    }
    batch->segments.push_back(segment);
  }

  // Samples by id, each of its own length: 4, 7, 10 tokens, the first ones a prompt. With an
  // encoder these are its rows, and the decoder has others.
  MicroBatch Samples(const std::vector<int64_t>& ids) const {
    MicroBatch text, answers;
    text.step = answers.step = 1;
    for (const int64_t id : ids) {
      Append(id, method_->virtual_rows(), 4 + 3 * id, 2 + id, &text);
      Append(id, 0, 6 - id, 0, &answers);
    }
    if (!config_.has_encoder()) return text;
    answers.source = std::make_shared<const MicroBatch>(std::move(text));
    return answers;
  }

  static Tensor Run(models::Backbone& model, const MicroBatch& batch, bool training = false,
                    models::SequenceStates* sequences = nullptr, models::KvCache* cache = nullptr) {
    models::SiteContext context;
    context.batch = &batch;
    context.training = training;
    context.sequences = sequences;
    const Tensor h = model.Embed(context);
    return model.Layers(h, context, cache);
  }

  static void RunBackward(const Tensor& h) {
    if (h.requires_grad()) torch::autograd::backward({h.square().sum()}, {});
  }

  static Tensor RowsOf(const Tensor& h, const MicroBatch& batch, size_t sample) {
    const Segment& own = batch.segments[sample];
    if (batch.source == nullptr) return h.narrow(0, own.begin, own.length);
    const Segment& read = batch.source->segments[sample];
    return at::cat({h.narrow(0, read.begin, read.length),
                    h.narrow(0, batch.source->num_rows() + own.begin, own.length)});
  }

  torch::Device device_ = torch::kCPU;  // of models that are built from now on
  testing::TempFolder folder_;
  models::ModelConfig config_;
  std::unique_ptr<Method> method_;
  std::vector<models::SiteSpec> matched_;
};

inline auto AllFamiliesAndMethods() {
  return ::testing::Combine(
      ::testing::Values(Family{"llama", "llama"}, Family{"gpt2", "gpt2", false},
                        Family{"roberta", "roberta", false}, Family{"t5", "t5", false},
                        Family{"t5_v1_1", "t5"}),
      ::testing::Values(
          MethodRow{"none", "none", {}}, MethodRow{"lora", "lora", {{"sites", "[all]"}}},
          MethodRow{"lora_dropout", "lora", {{"dropout", "0.4"}}},
          MethodRow{"fanlora", "fanlora", {}}, MethodRow{"ia3", "ia3", {{"sites", "[all]"}}},
          MethodRow{"red", "red", {}},
          MethodRow{"red_layer_out", "red", {{"sites", "[layer.out]"}}, true, false},
          MethodRow{"para", "para", {{"rank", "3"}}, true, false},
          MethodRow{"para_attention",
                    "para",
                    {{"rank", "3"}, {"pooling", "attention"}, {"activation", "rational"}},
                    true,
                    false},
          MethodRow{"prompt_tuning", "prompt_tuning", {{"prompt_length", "3"}}, false, false},
          MethodRow{"idpg", "idpg", {{"prompt_length", "2"}, {"hidden", "8"}}, false, false},
          MethodRow{"lopa", "lopa", {{"prompt_length", "3"}, {"rank", "2"}}, false, false}));
}

inline std::string RowName(
    const ::testing::TestParamInfo<std::tuple<Family, MethodRow>>& instance) {
  return std::get<0>(instance.param).title + "_" + std::get<1>(instance.param).title;
}

}  // namespace graft::adapters
