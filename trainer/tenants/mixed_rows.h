// One decoding step of rows that belong to different tenants, or to none: arranges what each site
// does to which rows, as hooks of that pass (SiteContext::guests). Low-rank edits go through one
// grouped product for the linears that share an input, vectors through one gathered pass, whatever
// else a hook does through the hook itself on its tenant's rows. On a device the first two are
// tables (device_edits.h). Used by the engine.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "adapters/grouped_rows.h"
#include "models/site.h"
#include "trainer/tenants/device_edits.h"
#include "trainer/tenants/tenant.h"

namespace graft::trainer {

enum class TenantKernel {
  kGrouped,
  kLoop,  // each tenant's own hooks on its own rows, as huggingface/peft runs a mixed batch
};

// Rows of one tenant, one after the other in the batch.
struct TenantRows {
  std::shared_ptr<const ReadyTenant> tenant;
  int64_t begin = 0;
  std::vector<int64_t> sequences;
  int64_t end() const { return begin + static_cast<int64_t>(sequences.size()); }
  friend bool operator==(const TenantRows&, const TenantRows&) = default;
};

class MixedRows {
 public:
  // For hidden states in `dtype` on `device`.
  MixedRows(TenantKernel kernel, torch::Dtype dtype, torch::Device device);
  // The hooks for a pass over `batch`, each of whose segments is one row; `groups` name the rows
  // that have a tenant. `states` and the table live as long as the pass; a pass with the same
  // groups as the one before costs nothing here.
  const models::SiteTable& Arrange(const models::MicroBatch& batch, std::vector<TenantRows> groups,
                                   models::SequenceStates& states);

  // On a device, of the pass that was arranged last. What must be equal for two passes to launch
  // the same work on the same memory; null where it cannot be said: a hook was called, or what the
  // work reads moves with the arrangement.
  const std::vector<int64_t>* layout() const { return layout_ ? &*layout_ : nullptr; }

  // The inner products of linears with the same input; `columns` numbers for each row.
  struct SharedInput {
    std::vector<adapters::LowRankGroup> groups;
    int64_t columns = 0;
  };
  // Lets go of the tenants of the last pass.
  void Forget() {
    groups_.clear();
    table_ = {};
    device_edits_.reset();
    num_rows_ = 0;
  }

  // What one site does, in the order of the tenants' own hooks.
  struct Wave {
    std::vector<adapters::LowRankGroup> low_rank;
    std::shared_ptr<const SharedInput> input;                         // of low_rank
    std::vector<adapters::RowVectors> input_vectors, output_vectors;  // by row; empty: none
    std::vector<std::pair<size_t, const RowHook*>> others;            // group, hook
    // On a device: what else it does, by its place among the site's waves.
    std::optional<DeviceEdits::Key> on_device = {};
    bool empty() const {
      return low_rank.empty() && input_vectors.empty() && output_vectors.empty() &&
             others.empty() && !on_device;
    }
  };
  // A tenant's rows as a batch of their own, for the hooks that are called.
  struct OwnPass {
    models::MicroBatch batch;
    models::SiteContext context;
  };
  OwnPass& own_pass(size_t group) { return *own_passes_[group]; }
  const TenantRows& group(size_t index) const { return groups_[index]; }
  const DeviceEdits& device_edits() const { return *device_edits_; }

 private:
  void Rebuild(models::SequenceStates& states);
  void AddVectors(const TenantRows& rows, const models::RowEdit& edit,
                  models::SequenceStates& states, Wave* wave);
  void AddHook(size_t group, const DeviceEdits::Key& key, const RowHook& hook,
               models::SequenceStates& states, Wave* wave);
  void AddOnDevice(const TenantRows& rows, const DeviceEdits::Key& key, const RowHook& hook,
                   models::SequenceStates& states, Wave* wave);
  // What a request's own scales are, kept for the pass.
  const torch::Tensor& ScalesOf(const models::RowEdit& edit, const TenantRows& rows, int64_t row,
                                models::SequenceStates& states);
  void PlaceTables(bool calls_hooks);

  TenantKernel kernel_;
  torch::Dtype dtype_;
  torch::Device device_;
  bool on_host_;  // the loops of adapters/grouped_rows.h, else device_edits_
  // Of the pass that the table is for; no rows: of none.
  int64_t num_rows_ = 0;
  std::vector<TenantRows> groups_;
  std::vector<std::unique_ptr<OwnPass>> own_passes_;  // by group
  std::vector<torch::Tensor> kept_;                   // what the waves point into
  models::SiteTable table_;
  std::unique_ptr<DeviceEdits> device_edits_;
  std::optional<std::vector<int64_t>> layout_;
  // Memory of the tables by layout: passes that launch the same work find it at the same place.
  std::map<std::vector<int64_t>, torch::Tensor> table_memory_;
};

}  // namespace graft::trainer
