#include "trainer/tenants/tenant.h"

#include <utility>

#include <ATen/ATen.h>

#include "base/status.h"
#include "models/device.h"
#include "sharding/adapter_folder.h"

namespace graft::trainer {
namespace {

using models::RowEdit;

// Copies the stored values into memory of the parameter's own; returns its bytes.
int64_t TakeValues(const adapters::NamedTensors& tensors, adapters::NamedParameter* parameter) {
  for (const auto& [name, value] : tensors) {
    if (name != parameter->name) continue;
    parameter->value.set_data(
        value.to(parameter->value.device(), at::kFloat, /*non_blocking=*/false, /*copy=*/true));
    return static_cast<int64_t>(parameter->value.nbytes());
  }
  GRAFT_CHECK(false, "a tenant without " + parameter->name);
  return 0;
}

// What decoding reads of a low-rank edit; returns the bytes that it takes beside the parameters.
int64_t PrepareLowRank(torch::Dtype dtype, RowHook* row) {
  const torch::Tensor a = row->edit.a.detach();
  row->a = a.to(dtype).contiguous();
  row->b_transposed = row->edit.b.detach().t().to(dtype).contiguous();
  const size_t of_a = row->a.is_same(a) ? 0 : row->a.nbytes();
  return static_cast<int64_t>(of_a + row->b_transposed.nbytes());
}

}  // namespace

int64_t StoredAdapter::bytes() const {
  int64_t sum = 0;
  for (const auto& [name, value] : tensors) sum += static_cast<int64_t>(value.nbytes());
  return sum;
}

absl::StatusOr<StoredAdapter> ReadTenant(const Recipe& recipe, const models::ModelConfig& config) {
  StoredAdapter adapter;
  GRAFT_ASSIGN_OR_RETURN(adapter.choice, ChooseAdapter(recipe, config, /*outputs=*/0));
  GRAFT_ASSIGN_OR_RETURN(const sharding::AdapterFolder folder,
                         sharding::ReadAdapterFolder(recipe.adapter.init_from));
  GRAFT_ASSIGN_OR_RETURN(adapter.tensors, sharding::FolderParameters(folder, *adapter.choice.method,
                                                                     adapter.choice.matched));
  return adapter;
}

absl::StatusOr<std::shared_ptr<const ReadyTenant>> ReadyTenant::Prepare(
    const StoredAdapter& adapter, models::Backbone& backbone, torch::Dtype dtype,
    std::shared_ptr<adapters::PromptEncoder> encoder) {
  at::NoGradGuard no_grad;
  adapters::AttachOptions options;
  options.num_layers = static_cast<int>(backbone.config().num_layers);
  options.model_dtype = options.compute_dtype = dtype;
  options.device = backbone.device();
  options.vocab_size = backbone.config().vocab_size;
  options.word_embeddings = [&backbone](const std::vector<int64_t>& ids) {
    return backbone.WordEmbeddings(ids);
  };
  options.prompt_encoder = std::move(encoder);
  const bool on_host = models::UsesHostKernels(at::empty({0}, at::device(backbone.device())));
  const auto tenant = std::make_shared<ReadyTenant>();
  tenant->method_ = adapter.choice.method.get();
  GRAFT_ASSIGN_OR_RETURN(adapters::Attachment attachment,
                         adapter.choice.method->Attach(adapter.choice.matched, options));
  for (adapters::NamedParameter& parameter : attachment.parameters)
    tenant->bytes_ += TakeValues(adapter.tensors, &parameter);
  for (const auto& [site, hook] : attachment.hooks) {
    tenant->prompt_hooks_.Add(site, hook);
    RowHook row{hook, hook->EditOfRow(), {}, {}};
    tenant->says_rows_ = tenant->says_rows_ && row.edit.kind != RowEdit::Kind::kOther;
    if (row.edit.kind == RowEdit::Kind::kLowRank)
      tenant->bytes_ += PrepareLowRank(on_host ? torch::kFloat32 : dtype, &row);
    tenant->row_hooks_[site].push_back(std::move(row));
  }
  for (const adapters::RequestScales& scales : attachment.request_scales) {
    for (const models::SiteSpec& site : scales.sites)
      tenant->bytes_per_request_ += site.out_features * static_cast<int64_t>(sizeof(float));
  }
  return std::shared_ptr<const ReadyTenant>(tenant);
}

}  // namespace graft::trainer
