// Methods from recipe fields and a toy model with sites, for the tests of methods.
#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "adapters/adapter.h"
#include "adapters/adapter_set.h"
#include "base/recipe_yaml.h"
#include "base/status.h"
#include "models/site.h"
#include "tests/adapters/llama_sites.h"

namespace graft::adapters {

// The method with `section` (YAML fields such as {{"rank", "4"}}) read over its defaults.
inline std::unique_ptr<Method> MethodWith(const std::string& name, const FieldList& fields) {
  std::unique_ptr<Method> method = *NewMethod(name);
  const absl::Status status =
      ReadFieldList(fields, "test", [&](FieldVisitor& v) { method->VisitFields(v); });
  EXPECT_TRUE(status.ok()) << status;
  return method;
}

// One layer of a toy model without attention, so that every row stands alone; input (N, 6), output
// (N, 5). Every place calls the table as a backbone does.
struct ToyModel {
  struct Linear {
    torch::Tensor weight, bias;  // (out, in), (out) or undefined
  };

  explicit ToyModel(torch::Dtype dtype = torch::kFloat32) : type(dtype) {
    at::manual_seed(7);
    for (const models::SiteSpec& site : Sites()) {
      if (!models::IsLinear(site.id.role)) continue;
      linears[site.id.role].weight =
          (at::randn({site.out_features, site.in_features}) / 2).to(dtype);
    }
    linears[models::Role::kFfnDown].bias = at::randn({8}).to(dtype);
    out = at::randn({5, 8}).to(dtype);
  }

  static std::vector<models::SiteSpec> Sites() {
    using models::Role;
    return {{{1, Role::kEmbed}, "model.embed_tokens", 6, 6, false},
            {{0, Role::kAttnQ}, "model.layers.0.self_attn.q_proj", 6, 5, false},
            {{0, Role::kAttnV}, "model.layers.0.self_attn.v_proj", 6, 6, false},
            {{0, Role::kFfnUp}, "model.layers.0.mlp.up_proj", 6, 7, false},
            {{0, Role::kFfnDown}, "model.layers.0.mlp.down_proj", 7, 8, false},
            {{0, Role::kLayerIn}, "model.layers.0", 6, 6, false},
            {{0, Role::kFfnOut}, "model.layers.0.mlp.down_proj", 8, 8, false},
            {{0, Role::kLayerOut}, "model.layers.0", 5, 5, false}};
  }

  torch::Tensor Run(const torch::Tensor& x, const models::SiteTable& table,
                    const models::MicroBatch& batch, bool training,
                    models::SequenceStates* sequences = nullptr) const {
    using models::Role;
    models::SiteContext context;
    context.sequences = sequences;
    context.batch = &batch;
    context.training = training;
    context.layer = 1;  // outside the layers
    torch::Tensor h = table.EditHidden(Role::kEmbed, x, context);
    context.layer = 0;
    h = table.EditHidden(Role::kLayerIn, h, context);
    const torch::Tensor q = Apply(Role::kAttnQ, h, table, context);
    const torch::Tensor v = Apply(Role::kAttnV, h, table, context);
    const torch::Tensor up = Apply(Role::kFfnUp, h + v, table, context);
    const torch::Tensor down = Apply(Role::kFfnDown, up, table, context);
    h = table.EditHidden(Role::kFfnOut, down, context);
    return table.EditHidden(Role::kLayerOut, q + at::mm(h, out.t()), context);
  }

  torch::Dtype type;
  std::map<models::Role, Linear> linears;
  torch::Tensor out;

 private:
  torch::Tensor Apply(models::Role role, const torch::Tensor& x, const models::SiteTable& table,
                      models::SiteContext& context) const {
    const models::SiteInput input = table.EditInput(role, {x, nullptr}, context);
    const Linear& linear = linears.at(role);
    torch::Tensor y = at::mm(input.value, linear.weight.t());
    if (linear.bias.defined()) y = y + linear.bias;
    return table.EditOutput(role, input, y, context);
  }
};

// Rebuilds x and counts how often.
class CountingRebuilder : public models::Rebuilder {
 public:
  explicit CountingRebuilder(torch::Tensor x) : x_(std::move(x)) {}
  torch::Tensor Get() override {
    ++calls;
    return x_;
  }
  void Release() override {}
  int calls = 0;

 private:
  torch::Tensor x_;
};

// Samples of these lengths, ids from `first_id`; the first half of each is its prompt.
inline models::MicroBatch BatchOf(const std::vector<int64_t>& lengths, int64_t first_id = 0,
                                  int64_t step = 1) {
  models::MicroBatch batch;
  batch.step = step;
  for (const int64_t length : lengths) {
    batch.segments.push_back({first_id++, batch.num_rows(), length, (length + 1) / 2});
  }
  return batch;
}

// max |a - b| / max |b|.
inline double RelativeError(const torch::Tensor& a, const torch::Tensor& b) {
  const torch::Tensor wide_a = a.to(at::kDouble), wide_b = b.to(at::kDouble);
  return ((wide_a - wide_b).abs().max() / wide_b.abs().max()).item<double>();
}

}  // namespace graft::adapters
