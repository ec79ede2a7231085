// Plan and stage of a fake model (fake_model.h).
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "sharding/plan.h"
#include "sharding/stage.h"
#include "tests/sharding/fake_model.h"

namespace graft::testing {

inline sharding::Plan FakePlan(int num_layers, const FakeMethod& method, int stages,
                               int chunks = 1) {
  sharding::PlanOptions options;
  options.stages = stages;
  options.chunks = chunks;
  return ValueOrThrow(sharding::MakePlan(
      FakeConfig(num_layers),
      sharding::CountTrainables(method, method.Sites(num_layers), num_layers), options));
}

inline std::unique_ptr<sharding::Stage> FakeStage(const sharding::Plan& plan, int stage,
                                                  const FakeMethod& method) {
  std::vector<std::unique_ptr<models::Backbone>> backbones;
  for (int chunk = 0; chunk < plan.chunks; ++chunk) {
    backbones.push_back(std::make_unique<FakeBackbone>(FakeConfig(plan.num_layers),
                                                       sharding::RangeOf(plan.Part(stage, chunk))));
  }
  adapters::AttachOptions options;
  options.num_layers = plan.num_layers;
  return ValueOrThrow(sharding::Stage::Assemble(plan, stage, std::move(backbones), method,
                                                method.Sites(plan.num_layers), options));
}

}  // namespace graft::testing
