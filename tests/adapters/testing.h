// Methods from recipe fields and a toy model with sites, for the tests of methods.
#pragma once

#include <cmath>
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

// One layer of a toy model: y = x W^T at ffn.down, the hidden state at ffn.out, y2 = h W2^T at
// attn.q; input (N, 6), output (N, 5). Every place calls the table as a backbone does.
struct ToyModel {
  explicit ToyModel(torch::Dtype dtype = torch::kFloat32) : type(dtype) {
    at::manual_seed(7);
    down = at::randn({8, 6}).to(dtype);
    down_bias = at::randn({8}).to(dtype);
    q = at::randn({5, 8}).to(dtype);
  }

  static std::vector<models::SiteSpec> Sites() {
    using models::Role;
    return {{{0, Role::kAttnQ}, "model.layers.0.self_attn.q_proj", 8, 5, false},
            {{0, Role::kFfnDown}, "model.layers.0.mlp.down_proj", 6, 8, false},
            {{0, Role::kFfnOut}, "model.layers.0.mlp.down_proj", 8, 8, false},
            {{0, Role::kLayerOut}, "model.layers.0", 5, 5, false}};
  }

  torch::Tensor Run(const torch::Tensor& x, const models::SiteTable& table,
                    const models::MicroBatch& batch, bool training) const {
    using models::Role;
    models::SiteContext context;
    context.batch = &batch;
    context.training = training;
    const models::SiteInput first{x, nullptr};
    torch::Tensor h =
        table.EditOutput(Role::kFfnDown, first, at::addmm(down_bias, x, down.t()), context);
    h = table.EditHidden(Role::kFfnOut, h, context);
    const models::SiteInput second{h, nullptr};
    torch::Tensor y = table.EditOutput(Role::kAttnQ, second, at::mm(h, q.t()), context);
    return table.EditHidden(Role::kLayerOut, y, context);
  }

  torch::Dtype type;
  torch::Tensor down, down_bias, q;
};

// Samples of these lengths, ids from `first_id`.
inline models::MicroBatch BatchOf(const std::vector<int64_t>& lengths, int64_t first_id = 0,
                                  int64_t step = 1) {
  models::MicroBatch batch;
  batch.step = step;
  for (const int64_t length : lengths) {
    batch.segments.push_back({first_id++, batch.num_rows(), length, 0});
  }
  return batch;
}

// max |a - b| / max |b|.
inline double RelativeError(const torch::Tensor& a, const torch::Tensor& b) {
  const torch::Tensor wide_a = a.to(at::kDouble), wide_b = b.to(at::kDouble);
  return ((wide_a - wide_b).abs().max() / wide_b.abs().max()).item<double>();
}

}  // namespace graft::adapters
