// What every method must pass (docs/adding-an-adapter.md): one row per method and setting.
#include <ostream>

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include "base/status.h"
#include "tests/adapters/testing.h"
#include "tests/testing/temp_folder.h"

namespace graft::adapters {
namespace {

constexpr char kToySetting[] = R"({"format": "graft-setting", "version": 1, "model_type": "toy",
  "num_layers": 1, "selection": {}, "keep": [{"layer": 0, "roles": ["ffn.down", "attn.q"],
  "rank": 3, "alpha": 4.5}]})";

struct Row {
  std::string title;
  std::string method;
  FieldList fields;
  bool merges = true;
  bool identity = true;  // starts as the frozen model
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.title; }

class AdapterContract : public ::testing::TestWithParam<Row> {
 protected:
  using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;
  struct Attached {
    std::unique_ptr<AdapterSet> set;
    models::SiteTable table;
  };

  void SetUp() override {
    FieldList fields = GetParam().fields;
    if (GetParam().method == "fanlora") {
      const std::string path = folder_.Write("setting.json", kToySetting);
      fields.emplace_back("setting", path);
    }
    method_ = MethodWith(GetParam().method, fields);
    const absl::Status opened = method_->Open({"toy", ToyModel::Sites(), 1});
    ASSERT_TRUE(opened.ok()) << opened;
    matched_ = *method_->MatchSites(ToyModel::Sites());
  }

  // Samples of these rows, the method's virtual ones among them, half of the text a prompt.
  models::MicroBatch Batch(const std::vector<int64_t>& lengths, int64_t first_id = 0) const {
    models::MicroBatch batch = BatchOf(lengths, first_id);
    for (models::Segment& segment : batch.segments) {
      segment.virtual_rows = method_->virtual_rows();
      segment.prompt_length = (segment.length - segment.virtual_rows + 1) / 2;
    }
    return batch;
  }

  std::unique_ptr<Attached> Attach(uint64_t seed = 3) const {
    auto attached = std::make_unique<Attached>();
    AttachOptions options;
    options.seed = seed;
    options.num_layers = 1;
    attached->set = *AdapterSet::Attach(*method_, matched_, options, attached->table);
    return attached;
  }

  // Away from the identity, as after some training.
  static void Disturb(AdapterSet& set, int64_t seed) {
    at::manual_seed(static_cast<uint64_t>(seed));
    at::NoGradGuard no_grad;
    for (const NamedParameter& p : set.parameters()) p.value.add_(at::randn_like(p.value), 0.3);
  }

  static NamedTensors TensorsOf(const AdapterSet& set) {
    NamedTensors tensors;
    for (const NamedParameter& p : set.parameters()) {
      tensors.emplace_back(p.name, p.value.detach().clone());
    }
    return tensors;
  }

  testing::TempFolder folder_;
  ToyModel toy_;
  std::unique_ptr<Method> method_;
  std::vector<models::SiteSpec> matched_;
};

TEST_P(AdapterContract, StartsAsTheFrozenModel) {
  if (!GetParam().identity) return;
  const auto batch = Batch({3, 4});
  const auto x = at::randn({7, 6});
  const auto adapted = toy_.Run(x, Attach()->table, batch, /*training=*/true);
  EXPECT_TRUE(at::equal(adapted, toy_.Run(x, models::SiteTable(), batch, true)));
}

TEST_P(AdapterContract, ParametersAreWhatTheFormulaSays) {
  const auto attached = Attach();
  const auto specs = method_->Parameters(matched_);
  const auto& parameters = attached->set->parameters();
  ASSERT_EQ(parameters.size(), specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    EXPECT_EQ(parameters[i].name, specs[i].name);
    EXPECT_EQ(parameters[i].value.sizes().vec(), specs[i].shape);
    EXPECT_EQ(parameters[i].layer, specs[i].layer);
  }
  EXPECT_EQ(attached->set->size(), method_->CountParameters(matched_));
}

TEST_P(AdapterContract, InitialValuesComeFromTheSeedAlone) {
  const auto one = Attach(3), same = Attach(3);
  EXPECT_TRUE(at::equal(one->set->values(), same->set->values()));
}

TEST_P(AdapterContract, GradientsReachItsOwnParametersAndTheInput) {
  const auto attached = Attach();
  Disturb(*attached->set, 1);
  const auto batch = Batch({3, 4});
  const auto x = at::randn({7, 6}).requires_grad_();
  toy_.Run(x, attached->table, batch, true).square().sum().backward();
  EXPECT_GT(x.grad().abs().sum().item<float>(), 0);
  for (const NamedParameter& p : attached->set->parameters()) {
    EXPECT_GT(p.value.grad().abs().max().item<float>(), 0) << p.name;
  }
  for (const auto& [role, linear] : toy_.linears) EXPECT_FALSE(linear.weight.requires_grad());
}

TEST_P(AdapterContract, NoGraphWithoutGradMode) {
  const auto attached = Attach();
  Disturb(*attached->set, 1);
  const auto batch = Batch({7});
  const auto x = at::randn({7, 6});
  const auto with_graph = toy_.Run(x, attached->table, batch, false);
  at::NoGradGuard no_grad;
  const auto without = toy_.Run(x, attached->table, batch, false);
  EXPECT_FALSE(without.requires_grad());
  EXPECT_TRUE(at::equal(with_graph.detach(), without));
}

TEST_P(AdapterContract, SavedAndLoadedIsTheSame) {
  const auto attached = Attach();
  Disturb(*attached->set, 1);
  const auto tensors = TensorsOf(*attached->set);
  ASSERT_TRUE(CheckAdapterTensors(*method_, matched_, tensors, "folder").ok());
  const auto other = Attach(99);
  ASSERT_TRUE(other->set->Load(tensors).ok());
  const auto batch = Batch({7});
  const auto x = at::randn({7, 6});
  EXPECT_TRUE(at::equal(toy_.Run(x, attached->table, batch, false),
                        toy_.Run(x, other->table, batch, false)));
}

TEST_P(AdapterContract, ReadsItsOwnConfig) {
  const auto config = method_->PeftConfig(matched_, {"base", "CAUSAL_LM"});
  EXPECT_EQ(config.at("base_model_name_or_path"), "base");
  EXPECT_EQ(config.at("task_type"), "CAUSAL_LM");
  EXPECT_TRUE(method_->CheckPeftConfig(config, "adapter_config.json").ok());
}

// Forward of both, then backward of both in either order: as 1F1B interleaves them.
TEST_P(AdapterContract, MicroBatchesDoNotMix) {
  const auto x = at::randn({9, 6}).requires_grad_(true);
  const auto whole = Attach(), split = Attach();
  Disturb(*whole->set, 1);
  Disturb(*split->set, 1);
  toy_.Run(x, whole->table, Batch({4, 5}), true).square().sum().backward();

  const auto batch1 = Batch({4}, 0), batch2 = Batch({5}, 1);
  const auto y1 = toy_.Run(x.narrow(0, 0, 4), split->table, batch1, true);
  const auto y2 = toy_.Run(x.narrow(0, 4, 5), split->table, batch2, true);
  y2.square().sum().backward();
  y1.square().sum().backward();
  if (whole->set->size() > 0) {
    EXPECT_LT(RelativeError(split->set->gradients(), whole->set->gradients()), 1e-5);
  }
}

TEST_P(AdapterContract, RecomputationGivesTheSameGradients) {
  const auto x = at::randn({7, 6}).requires_grad_(true);
  const auto batch = Batch({3, 4});
  const auto attached = Attach();
  Disturb(*attached->set, 1);
  toy_.Run(x, attached->table, batch, true).square().sum().backward();
  const auto first = attached->set->gradients().clone();
  attached->set->ZeroGradients();
  {
    at::NoGradGuard no_grad;
    toy_.Run(x, attached->table, batch, true);
  }
  toy_.Run(x, attached->table, batch, true).square().sum().backward();
  EXPECT_TRUE(at::equal(attached->set->gradients(), first));
}

TEST_P(AdapterContract, MergedEqualsUnmerged) {
  const auto attached = Attach();
  Disturb(*attached->set, 1);
  const auto tensors = TensorsOf(*attached->set);
  ToyModel merged = toy_;
  for (const models::SiteSpec& site : matched_) {
    const bool is_ffn_out = site.id.role == models::Role::kFfnOut;
    ToyModel::Linear& linear = merged.linears[is_ffn_out ? models::Role::kFfnDown : site.id.role];
    const bool had_bias = linear.bias.defined();
    const absl::Status status = method_->Merge(site, tensors, &linear.weight, &linear.bias);
    if (!GetParam().merges) {
      EXPECT_EQ(ExitCodeOf(status), 78);
      return;
    }
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(linear.bias.defined(), had_bias || method_->MergeAddsBias(site));
  }
  const auto batch = Batch({7});
  const auto x = at::randn({7, 6});
  EXPECT_LT(RelativeError(toy_.Run(x, attached->table, batch, false),
                          merged.Run(x, models::SiteTable(), batch, false)),
            1e-5);
}

// What an answer says reaches no row in front of it: prompt-dependent state comes from the prompt
// alone (methods.md 1.3).
TEST_P(AdapterContract, AnswersDoNotReachThePrompt) {
  const auto attached = Attach();
  Disturb(*attached->set, 1);
  const auto batch = Batch({5, 6});
  const auto x = at::randn({11, 6});
  const auto before = toy_.Run(x, attached->table, batch, false);
  const auto changed = x.clone();
  for (const models::Segment& segment : batch.segments) {
    const int64_t answer = segment.prompt_begin() + segment.prompt_length;
    changed.narrow(0, answer, segment.begin + segment.length - answer).fill_(9.0);
  }
  const auto after = toy_.Run(changed, attached->table, batch, false);
  for (const models::Segment& segment : batch.segments) {
    const int64_t rows = segment.virtual_rows + segment.prompt_length;
    EXPECT_TRUE(
        at::equal(before.narrow(0, segment.begin, rows), after.narrow(0, segment.begin, rows)));
  }
}

TEST_P(AdapterContract, VirtualRowsAreTheMethodsOwn) {
  const auto attached = Attach();
  Disturb(*attached->set, 1);
  const auto batch = Batch({5, 6});
  const auto x = at::randn({11, 6});
  const auto changed = x.clone();
  for (const models::Segment& segment : batch.segments) {
    changed.narrow(0, segment.begin, segment.virtual_rows).fill_(9.0);
  }
  EXPECT_TRUE(at::equal(toy_.Run(x, attached->table, batch, false),
                        toy_.Run(changed, attached->table, batch, false)));
}

INSTANTIATE_TEST_SUITE_P(
    Methods, AdapterContract,
    ::testing::Values(
        Row{"fanlora", "fanlora", {}},
        Row{"fanlora_dropout", "fanlora", {{"dropout", "0.4"}, {"rslora", "true"}}},
        Row{"idpg", "idpg", {{"prompt_length", "2"}, {"hidden", "4"}}, false, false},
        Row{"lopa", "lopa", {{"prompt_length", "2"}, {"rank", "2"}}, false, false},
        Row{"lopa_concat", "lopa", {{"prompt_length", "1"}, {"fusion", "concat"}}, false, false},
        Row{"lopa_add", "lopa", {{"prompt_length", "2"}, {"fusion", "add"}}, false, false},
        Row{"lopa_max", "lopa", {{"prompt_length", "2"}, {"fusion", "max"}}, false, false},
        Row{"prompt_tuning", "prompt_tuning", {{"prompt_length", "2"}}, false, false},
        Row{"para", "para", {{"rank", "3"}}, false},
        Row{"para_switches",
            "para",
            {{"rank", "3"},
             {"pooling", "attention"},
             {"activation", "rational"},
             {"input", "normed"},
             {"bias", "true"}},
            false},
        Row{"para_max_dropout",
            "para",
            {{"sites", "[attn.v, ffn.up]"}, {"pooling", "max"}, {"dropout", "0.3"}},
            false},
        Row{"para_last", "para", {{"sites", "[attn.q]"}, {"pooling", "last"}}, false},
        Row{"ia3", "ia3", {{"sites", "[attn.v, ffn.down]"}}},
        Row{"ia3_all", "ia3", {{"sites", "[all]"}}},
        Row{"lora", "lora", {{"sites", "[all]"}, {"rank", "3"}}},
        Row{"lora_rslora", "lora", {{"sites", "[attn.q]"}, {"rank", "4"}, {"rslora", "true"}}},
        Row{"lora_dropout", "lora", {{"sites", "[all]"}, {"rank", "3"}, {"dropout", "0.4"}}},
        Row{"none", "none", {}}, Row{"red", "red", {}},
        Row{"red_scale", "red", {{"what", "scale"}, {"sites", "[ffn.out, attn.q]"}}},
        Row{"red_bias", "red", {{"what", "bias"}, {"sites", "[ffn.out, attn.q]"}}},
        Row{"red_linears", "red", {{"sites", "[all]"}}},
        Row{"red_layer_out", "red", {{"sites", "[layer.out]"}}, /*merges=*/false}),
    [](const auto& instance) { return instance.param.title; });

}  // namespace
}  // namespace graft::adapters
