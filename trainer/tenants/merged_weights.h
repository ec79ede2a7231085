// The weights of a model with one adapter folded into them, tensor by tensor as they are loaded:
// what a server of a single tenant would run. Used by `bench tenants` as a baseline.
#pragma once

#include <string>
#include <vector>

#include "models/weights/weight_source.h"
#include "trainer/tenants/tenant.h"

namespace graft::trainer {

class MergedWeights : public models::WeightSource {
 public:
  // Both must outlive it. The method must merge without adding biases, as lora does.
  MergedWeights(models::WeightSource& weights, const StoredAdapter& adapter)
      : weights_(weights), adapter_(adapter), tensors_(adapter.tensors) {}
  bool Has(const std::string& name) const override { return weights_.Has(name); }
  // Error kind recipe when the method does not merge.
  absl::StatusOr<torch::Tensor> Load(const std::string& name, const std::vector<int64_t>& shape,
                                     torch::Dtype dtype) override;

 private:
  models::WeightSource& weights_;
  const StoredAdapter& adapter_;
  adapters::NamedTensors tensors_;  // the adapter's, where the weights are
};

}  // namespace graft::trainer
