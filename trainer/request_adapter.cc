#include "trainer/request_adapter.h"

#include <algorithm>
#include <memory>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "adapters/adapter.h"
#include "base/recipe_yaml.h"
#include "base/status.h"
#include "models/backbone.h"
#include "trainer/data/collate.h"

namespace graft::trainer {
namespace {

using models::Role;
using models::SiteSpec;

// Added behind the method's own hook at `embed`: keeps what stands in the virtual rows.
class KeepVirtualRows : public models::SiteHook {
 public:
  torch::Tensor EditOutput(const models::SiteInput& /*x*/, torch::Tensor y,
                           models::SiteContext& context) override {
    const models::Segment& segment = context.batch->segments.front();
    rows = y.narrow(0, segment.begin, segment.virtual_rows).clone();
    return y;
  }
  torch::Tensor rows;  // (M, D) in the model's dtype
};

adapters::PeftContext ContextOf(const LoadedModel& model) {
  const nlohmann::json own = model.PeftConfig();
  return {.base_model_name_or_path = own.at("base_model_name_or_path").get<std::string>(),
          .task_type = own.at("task_type").get<std::string>()};
}

absl::StatusOr<std::unique_ptr<adapters::Method>> MethodWith(const std::string& name,
                                                             const FieldList& fields) {
  GRAFT_ASSIGN_OR_RETURN(std::unique_ptr<adapters::Method> method, adapters::NewMethod(name));
  GRAFT_RETURN_IF_ERROR(ReadFieldList(
      fields, name, [&method](FieldVisitor& visitor) { method->VisitFields(visitor); }));
  return method;
}

SiteSpec FindSite(const std::vector<SiteSpec>& sites, models::SiteId id) {
  const auto found = std::find_if(sites.begin(), sites.end(),
                                  [id](const SiteSpec& site) { return site.id == id; });
  GRAFT_CHECK(found != sites.end(), absl::StrCat("layer ", id.layer, " has no such site"));
  return *found;
}

absl::StatusOr<RequestAdapter> SoftPrompt(LoadedModel& model, const models::MicroBatch& batch) {
  const int64_t num_rows = model.method().virtual_rows();
  GRAFT_ASSIGN_OR_RETURN(const auto method,
                         MethodWith("prompt_tuning", {{"prompt_length", absl::StrCat(num_rows)}}));
  GRAFT_ASSIGN_OR_RETURN(const std::vector<SiteSpec> embed,
                         method->MatchSites(models::ListSites(model.config())));
  models::Backbone& backbone = model.stage().backbone(0);
  models::SiteTable& table = backbone.sites();
  const models::SiteTable without = table;
  const auto keep = std::make_shared<KeepVirtualRows>();
  table.Add(embed[0].id, keep);
  models::SiteContext context;
  context.batch = &batch;
  backbone.Embed(context);
  table = without;
  return RequestAdapter{method->PeftConfig(embed, ContextOf(model)),
                        {{method->Parameters(embed)[0].name, keep->rows}}};
}

// The scales that a method keeps for a sequence, one IA3 vector for each linear: those of ffn.up
// enter ffn.down, which IA3 scales at its input.
absl::StatusOr<RequestAdapter> Scales(LoadedModel& model, const models::MicroBatch& batch) {
  models::SequenceStates states;
  models::SiteContext context;
  context.batch = &batch;
  context.sequences = &states;
  torch::Tensor h = model.stage().backbone(0).Embed(context);
  for (int chunk = 0; chunk < model.stage().num_chunks(); ++chunk) {
    h = model.stage().backbone(chunk).Layers(h, context);
  }
  const std::vector<SiteSpec> sites = models::ListSites(model.config());
  std::vector<SiteSpec> scaled;
  std::vector<torch::Tensor> vectors;
  for (const adapters::RequestScales& layer : model.adapters().request_scales()) {
    const torch::Tensor all =
        states.Get(layer.owner.get(), batch.segments.front().sample_id).to(at::kFloat);
    int64_t begin = 0;
    for (const SiteSpec& site : layer.sites) {
      const Role role = site.id.role == Role::kFfnUp ? Role::kFfnDown : site.id.role;
      scaled.push_back(FindSite(sites, {site.id.layer, role}));
      vectors.push_back(all.narrow(0, begin, site.out_features));
      begin += site.out_features;
    }
  }
  GRAFT_ASSIGN_OR_RETURN(const auto method, MethodWith("ia3", {}));
  sharding::NamedTensors tensors;
  for (const adapters::ParameterSpec& parameter : method->Parameters(scaled)) {
    tensors.emplace_back(parameter.name, vectors[tensors.size()].view(parameter.shape));
  }
  return RequestAdapter{method->PeftConfig(scaled, ContextOf(model)),
                        method->ToFolder(scaled, std::move(tensors))};
}

}  // namespace

absl::Status CheckMakesRequestAdapters(const LoadedModel& model) {
  if (!model.method().reads_prompt()) {
    return RecipeError(absl::StrCat("adapter.method: found `", model.method().name(),
                                    "`, which makes nothing of a request; allowed: a method that "
                                    "reads the prompt (idpg, lopa, para)"));
  }
  if (model.grid().pipeline == 1) return absl::OkStatus();
  return RecipeError(
      absl::StrCat("parallel.pipeline: found ", model.grid().pipeline,
                   ", `graft prompt` runs the whole model on each rank; allowed: 1"));
}

absl::StatusOr<RequestAdapter> MakeRequestAdapter(LoadedModel& model, const Dataset& data,
                                                  int64_t index) {
  const Sample sample = data.at(index);
  if (sample.prompt_length == 0) {
    return InputError(absl::StrCat(data.folder(), ": prompt_lengths: sample ", sample.sample_id,
                                   " has 0, `prompt` needs at least 1"));
  }
  at::NoGradGuard no_grad;
  const models::MicroBatch batch =
      Collate(data, {index}, /*step=*/0, /*index=*/0, model.method().virtual_rows());
  return model.method().virtual_rows() > 0 ? SoftPrompt(model, batch) : Scales(model, batch);
}

}  // namespace graft::trainer
