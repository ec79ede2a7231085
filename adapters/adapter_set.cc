#include "adapters/adapter_set.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "adapters/tensor_check.h"
#include "base/status.h"

namespace graft::adapters {

absl::StatusOr<std::unique_ptr<AdapterSet>> AdapterSet::Attach(
    const Method& method, const std::vector<models::SiteSpec>& matched_on_stage,
    const AttachOptions& options, models::SiteTable& table) {
  return Attach(method, matched_on_stage, options,
                [&table](models::SiteId) -> models::SiteTable& { return table; });
}

absl::StatusOr<std::unique_ptr<AdapterSet>> AdapterSet::Attach(
    const Method& method, const std::vector<models::SiteSpec>& matched_on_stage,
    const AttachOptions& options, const TableOf& table_of) {
  GRAFT_ASSIGN_OR_RETURN(Attachment attachment, method.Attach(matched_on_stage, options));
  auto set = std::unique_ptr<AdapterSet>(new AdapterSet());
  set->parameters_ = std::move(attachment.parameters);
  set->request_scales_ = std::move(attachment.request_scales);
  int64_t total = 0;
  for (const NamedParameter& parameter : set->parameters_) {
    GRAFT_CHECK(parameter.value.is_leaf() && parameter.value.requires_grad() &&
                    parameter.value.scalar_type() == torch::kFloat32,
                parameter.name + " must be a float32 leaf that requires grad");
    set->offsets_.push_back(total);
    total += parameter.value.numel();
  }
  const auto flat = at::TensorOptions().dtype(at::kFloat).device(options.device);
  set->values_ = at::zeros({total}, flat);
  set->gradients_ = at::zeros({total}, flat);
  for (size_t i = 0; i < set->parameters_.size(); ++i) {
    torch::Tensor& value = set->parameters_[i].value;
    const int64_t count = value.numel();
    const auto slice = set->values_.narrow(0, set->offsets_[i], count).view(value.sizes());
    slice.copy_(value.detach());
    value.set_data(slice);
    value.mutable_grad() = set->gradients_.narrow(0, set->offsets_[i], count).view(value.sizes());
  }
  for (auto& [site, hook] : attachment.hooks) table_of(site).Add(site, std::move(hook));
  return set;
}

void AdapterSet::ZeroGradients() { gradients_.zero_(); }

absl::Status AdapterSet::Load(const std::vector<std::pair<std::string, torch::Tensor>>& tensors) {
  TensorCheck check(tensors);
  std::vector<torch::Tensor> found;
  for (const NamedParameter& parameter : parameters_) {
    found.push_back(check.Expect(parameter.name, parameter.value.sizes().vec()));
  }
  GRAFT_RETURN_IF_ERROR(check.Result("adapter"));
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < found.size(); ++i) parameters_[i].value.copy_(found[i]);
  return absl::OkStatus();
}

}  // namespace graft::adapters
