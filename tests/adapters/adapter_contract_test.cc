// What every method must pass (docs/adding-an-adapter.md): one row per method and setting.
#include <ostream>

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include "base/status.h"
#include "tests/adapters/testing.h"

namespace graft::adapters {
namespace {

struct Row {
  std::string title;
  std::string method;
  FieldList fields;
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.title; }

class AdapterContract : public ::testing::TestWithParam<Row> {
 protected:
  using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;
  struct Attached {
    std::unique_ptr<AdapterSet> set;
    models::SiteTable table;
  };

  AdapterContract()
      : method_(MethodWith(GetParam().method, GetParam().fields)),
        matched_(*method_->MatchSites(ToyModel::Sites())) {}

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

  ToyModel toy_;
  std::unique_ptr<Method> method_;
  std::vector<models::SiteSpec> matched_;
};

TEST_P(AdapterContract, StartsAsTheFrozenModel) {
  const auto batch = BatchOf({3, 4});
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
  const auto batch = BatchOf({3, 4});
  const auto x = at::randn({7, 6}).requires_grad_();
  toy_.Run(x, attached->table, batch, true).square().sum().backward();
  EXPECT_GT(x.grad().abs().sum().item<float>(), 0);
  for (const NamedParameter& p : attached->set->parameters()) {
    EXPECT_GT(p.value.grad().abs().max().item<float>(), 0) << p.name;
  }
  EXPECT_FALSE(toy_.down.requires_grad() || toy_.q.requires_grad());
}

TEST_P(AdapterContract, NoGraphWithoutGradMode) {
  const auto attached = Attach();
  Disturb(*attached->set, 1);
  const auto batch = BatchOf({7});
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
  const auto batch = BatchOf({7});
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
  toy_.Run(x, whole->table, BatchOf({4, 5}), true).square().sum().backward();

  const auto batch1 = BatchOf({4}, 0), batch2 = BatchOf({5}, 1);
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
  const auto batch = BatchOf({3, 4});
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
  torch::Tensor q_bias;
  for (const models::SiteSpec& site : matched_) {
    const bool is_q = site.id.role == models::Role::kAttnQ;
    torch::Tensor& weight = is_q ? merged.q : merged.down;
    torch::Tensor& bias = is_q ? q_bias : merged.down_bias;
    const bool has_bias = bias.defined();
    const absl::Status status = method_->Merge(site, tensors, &weight, &bias);
    if (site.id.role == models::Role::kLayerOut) {
      EXPECT_EQ(ExitCodeOf(status), 78);
      return;
    }
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(bias.defined(), has_bias || method_->MergeAddsBias(site));
  }
  const auto batch = BatchOf({7});
  const auto x = at::randn({7, 6});
  auto expected = merged.Run(x, models::SiteTable(), batch, false);
  if (q_bias.defined()) expected = expected + q_bias;
  EXPECT_LT(RelativeError(toy_.Run(x, attached->table, batch, false), expected), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(
    Methods, AdapterContract,
    ::testing::Values(
        Row{"lora", "lora", {{"sites", "[all]"}, {"rank", "3"}}},
        Row{"lora_rslora", "lora", {{"sites", "[attn.q]"}, {"rank", "4"}, {"rslora", "true"}}},
        Row{"lora_dropout", "lora", {{"sites", "[all]"}, {"rank", "3"}, {"dropout", "0.4"}}},
        Row{"none", "none", {}}, Row{"red", "red", {}},
        Row{"red_scale", "red", {{"what", "scale"}, {"sites", "[ffn.out, attn.q]"}}},
        Row{"red_bias", "red", {{"what", "bias"}, {"sites", "[ffn.out, attn.q]"}}},
        Row{"red_linears", "red", {{"sites", "[all]"}}},
        Row{"red_layer_out", "red", {{"sites", "[layer.out]"}}}),
    [](const auto& instance) { return instance.param.title; });

}  // namespace
}  // namespace graft::adapters
