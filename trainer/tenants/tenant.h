// An adapter as a server of many tenants holds it, in two forms: stored (its tensors, as they were
// read) and ready (parameters with the hooks that compute, and what decoding reads of them). Used
// by the tenant table. One rank with the whole model; causal_lm.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "absl/status/statusor.h"
#include "adapters/adapter.h"
#include "adapters/tensor_check.h"
#include "models/backbone.h"
#include "models/site.h"
#include "trainer/loaded_model.h"

namespace graft::trainer {

struct StoredAdapter {
  AdapterChoice choice;
  adapters::NamedTensors tensors;  // of the whole model, float32
  int64_t bytes() const;
};

// The adapter that the recipe's adapter section says, with the tensors of adapter.init_from. Kind
// recipe, input: it must fit `config`, which is the backbone's.
absl::StatusOr<StoredAdapter> ReadTenant(const Recipe& recipe, const models::ModelConfig& config);

// One hook of a ready tenant, and what it does to a decoding row.
struct RowHook {
  std::shared_ptr<models::SiteHook> hook;
  models::RowEdit edit;
  // Of a low-rank edit, as decoding reads it: (r, in), (r, out). Float32 on the host, in the
  // model's dtype on a device.
  torch::Tensor a, b_transposed;
};

class ReadyTenant {
 public:
  // Gives the method memory of its own for the tensors. `encoder`: of a method that names one.
  static absl::StatusOr<std::shared_ptr<const ReadyTenant>> Prepare(
      const StoredAdapter& adapter, models::Backbone& backbone, torch::Dtype dtype,
      std::shared_ptr<adapters::PromptEncoder> encoder);

  const adapters::Method& method() const { return *method_; }
  // The method's own hooks, for prompts.
  const models::SiteTable& prompt_hooks() const { return prompt_hooks_; }
  // The same by site, for decoding rows.
  const std::map<models::SiteId, std::vector<RowHook>>& row_hooks() const { return row_hooks_; }
  // Whether all of them say what they do to a row; else they are called.
  bool says_rows() const { return says_rows_; }
  // Parameters on the backbone's device, and the second form of low-rank factors that decoding
  // reads.
  int64_t bytes() const { return bytes_; }
  // Numbers that it keeps of a running sequence in SequenceStates, times their size.
  int64_t bytes_per_request() const { return bytes_per_request_; }

 private:
  const adapters::Method* method_ = nullptr;
  models::SiteTable prompt_hooks_;
  std::map<models::SiteId, std::vector<RowHook>> row_hooks_;
  bool says_rows_ = true;
  int64_t bytes_ = 0, bytes_per_request_ = 0;
};

}  // namespace graft::trainer
