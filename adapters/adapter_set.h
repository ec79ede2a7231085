// Everything that is trained on one stage: one flat float32 buffer each for values and gradients, of which every parameter (and its
// .grad) is a view. It is the one list for optimizer, reducer, clipping and checkpoint.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "adapters/adapter.h"

namespace graft::adapters {

class AdapterSet {
 public:
  // Attaches `method` to a stage and adds its hooks to `table`. Stages without matched sites give an empty set.
  static absl::StatusOr<std::unique_ptr<AdapterSet>> Attach(const Method& method, const std::vector<models::SiteSpec>& matched_on_stage,
                                                            const AttachOptions& options, models::SiteTable& table);
  // The same for a stage of several chunks, each with a table of its own: `table_of` gives the table of a site's chunk.
  using TableOf = std::function<models::SiteTable&(models::SiteId)>;
  static absl::StatusOr<std::unique_ptr<AdapterSet>> Attach(const Method& method, const std::vector<models::SiteSpec>& matched_on_stage,
                                                            const AttachOptions& options, const TableOf& table_of);
  const std::vector<NamedParameter>& parameters() const { return parameters_; }
  const torch::Tensor& values() const { return values_; }        // (P) float32, 64-byte aligned
  const torch::Tensor& gradients() const { return gradients_; }  // (P) float32; each parameter's grad is its view
  const std::vector<RequestScales>& request_scales() const { return request_scales_; }
  int64_t size() const { return values_.numel(); }
  // Offset of parameter i in the flat buffers.
  int64_t offset(size_t i) const { return offsets_[i]; }
  void ZeroGradients();
  // Copies values in by name; tensors of other stages are passed over (CheckAdapterTensors finds what belongs to none). Error kind input with
  // the first mismatches: missing, other shape, non-finite; then nothing has been copied.
  absl::Status Load(const std::vector<std::pair<std::string, torch::Tensor>>& tensors);

 private:
  AdapterSet() = default;
  std::vector<NamedParameter> parameters_;
  std::vector<int64_t> offsets_;
  std::vector<RequestScales> request_scales_;
  torch::Tensor values_, gradients_;
};

}  // namespace graft::adapters
