#include "adapters/task_head.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "adapters/dropout.h"
#include "adapters/peft_config.h"
#include "adapters/tensor_check.h"
#include "base/philox.h"
#include "base/status.h"

namespace graft::adapters {
namespace {

using models::Role;
using models::SiteSpec;

// Masks of the two dropouts: the feature's and the hidden layer's, which draw as two positions of
// the sample.
struct HeadMasks {
  torch::Tensor first, second;  // (S, D)
};

class TaskHeadHook : public models::SiteHook {
 public:
  // `tensors` in the order of TaskHeadTensors.
  TaskHeadHook(const TaskHeadSpec& spec, std::vector<torch::Tensor> tensors, uint64_t seed)
      : spec_(spec), tensors_(std::move(tensors)), seed_(seed) {}

  // y: the state of each sample, (S, D) float32 -> (S, C).
  torch::Tensor EditOutput(const models::SiteInput& /*x*/, torch::Tensor y,
                           models::SiteContext& context) override {
    if (!spec_.has_dense) return at::linear(y, tensors_[0]);
    const bool drops = spec_.dropout > 0 && context.training;
    const HeadMasks masks = drops ? Draw(*context.batch) : HeadMasks();
    if (drops) y = y * masks.first;
    torch::Tensor hidden = at::tanh(at::linear(y, tensors_[0], tensors_[1]));
    if (drops) hidden = hidden * masks.second;
    return at::linear(hidden, tensors_[2], tensors_[3]);
  }

 private:
  HeadMasks Draw(const models::MicroBatch& batch) const {
    models::MicroBatch rows;
    rows.step = batch.step;
    for (const models::Segment& segment : batch.segments) {
      rows.segments.push_back({segment.sample_id, rows.num_rows(), 2});
    }
    const torch::Tensor mask =
        at::ones({rows.num_rows(), spec_.width}, tensors_[0].options().requires_grad(false));
    DropoutMask(seed_, RandomPurpose::kHeadDropout, {spec_.num_layers, Role::kHead}, spec_.dropout,
                rows)
        .ApplyInPlace({mask});
    const torch::Tensor pairs = mask.view({-1, 2, spec_.width});
    return {pairs.select(1, 0), pairs.select(1, 1)};
  }

  const TaskHeadSpec spec_;
  const std::vector<torch::Tensor> tensors_;
  const uint64_t seed_;
};

bool IsHead(const SiteSpec& site) { return site.id.role == Role::kHead; }

std::vector<SiteSpec> WithoutHead(std::vector<SiteSpec> sites) {
  std::erase_if(sites, IsHead);
  return sites;
}

class HeadedMethod : public Method {
 public:
  HeadedMethod(std::unique_ptr<Method> inner, const TaskHeadSpec& spec)
      : inner_(std::move(inner)), spec_(spec) {}

  const char* name() const override { return inner_->name(); }
  void VisitFields(FieldVisitor& visitor) override { inner_->VisitFields(visitor); }
  absl::Status Open(const ModelFacts& model) override { return inner_->Open(model); }
  bool chooses_layers() const override { return inner_->chooses_layers(); }
  int64_t virtual_rows() const override { return inner_->virtual_rows(); }
  bool reads_first_row() const override { return inner_->reads_first_row(); }
  bool reads_prompt() const override { return inner_->reads_prompt(); }
  const PromptEncoderChoice* prompt_encoder() const override { return inner_->prompt_encoder(); }
  bool trains_backbone() const override { return inner_->trains_backbone(); }
  int64_t KeptPerRow(const SiteSpec& site) const override {
    return IsHead(site) ? 0 : inner_->KeptPerRow(site);
  }

  absl::StatusOr<std::vector<SiteSpec>> MatchSites(
      const std::vector<SiteSpec>& model_sites) const override {
    GRAFT_ASSIGN_OR_RETURN(std::vector<SiteSpec> matched, inner_->MatchSites(model_sites));
    matched.push_back({{spec_.num_layers, Role::kHead}, spec_.module, spec_.width, spec_.outputs});
    return matched;
  }

  std::vector<ParameterSpec> Parameters(const std::vector<SiteSpec>& matched) const override {
    std::vector<ParameterSpec> parameters = inner_->Parameters(WithoutHead(matched));
    if (!spec_.train || !HasHead(matched)) return parameters;
    for (ParameterSpec tensor : TaskHeadTensors(spec_)) {
      tensor.name = FolderName(tensor.name);
      parameters.push_back(std::move(tensor));
    }
    return parameters;
  }

  absl::StatusOr<Attachment> Attach(const std::vector<SiteSpec>& matched_on_stage,
                                    const AttachOptions& options) const override {
    GRAFT_ASSIGN_OR_RETURN(Attachment attachment,
                           inner_->Attach(WithoutHead(matched_on_stage), options));
    if (!HasHead(matched_on_stage)) return attachment;
    std::vector<torch::Tensor> tensors;
    uint32_t number = 0;
    for (const ParameterSpec& tensor : TaskHeadTensors(spec_)) {
      torch::Tensor value = FindTensor(options.stored_head, tensor.name);
      if (!value.defined()) value = Fresh(tensor, number, options.seed);
      ++number;
      tensors.push_back(value.to(options.device).requires_grad_(spec_.train));
      if (!spec_.train) continue;
      attachment.parameters.push_back({FolderName(tensor.name), tensors.back(), tensor.layer});
    }
    attachment.hooks.emplace_back(
        models::SiteId{spec_.num_layers, Role::kHead},
        std::make_shared<TaskHeadHook>(spec_, std::move(tensors), options.seed));
    return attachment;
  }

  nlohmann::json PeftConfig(const std::vector<SiteSpec>& matched,
                            const PeftContext& context) const override {
    nlohmann::json config = inner_->PeftConfig(WithoutHead(matched), context);
    if (spec_.train) config["modules_to_save"] = {spec_.module};
    return config;
  }
  absl::Status CheckPeftConfig(const nlohmann::json& config,
                               const std::string& origin) const override {
    return inner_->CheckPeftConfig(config, origin);
  }
  NamedTensors ToFolder(const std::vector<SiteSpec>& matched,
                        NamedTensors parameters) const override {
    return inner_->ToFolder(WithoutHead(matched), std::move(parameters));
  }
  absl::StatusOr<NamedTensors> FromFolder(const std::vector<SiteSpec>& matched,
                                          const nlohmann::json& config, NamedTensors folder,
                                          const std::string& origin) const override {
    return inner_->FromFolder(WithoutHead(matched), config, std::move(folder), origin);
  }
  absl::StatusOr<FolderContent> AsPeft(const std::vector<SiteSpec>& matched,
                                       const PeftContext& context,
                                       NamedTensors parameters) const override {
    GRAFT_ASSIGN_OR_RETURN(FolderContent content,
                           inner_->AsPeft(WithoutHead(matched), context, std::move(parameters)));
    if (spec_.train) content.config["modules_to_save"] = {spec_.module};
    return content;
  }
  absl::StatusOr<LowRankEdit> LowRankAt(const SiteSpec& site,
                                        const NamedTensors& parameters) const override {
    return inner_->LowRankAt(site, parameters);
  }
  absl::Status Merge(const SiteSpec& site, const NamedTensors& tensors, torch::Tensor* weight,
                     torch::Tensor* bias) const override {
    return inner_->Merge(site, tensors, weight, bias);
  }
  bool MergeAddsBias(const SiteSpec& site) const override { return inner_->MergeAddsBias(site); }
  const char* head_prefix() const override { return inner_->head_prefix(); }

 private:
  static bool HasHead(const std::vector<SiteSpec>& sites) {
    return std::any_of(sites.begin(), sites.end(), IsHead);
  }
  std::string FolderName(const std::string& hf_name) const {
    return absl::StrCat(inner_->head_prefix(), hf_name);
  }
  torch::Tensor Fresh(const ParameterSpec& tensor, uint32_t number, uint64_t seed) const {
    torch::Tensor value = at::zeros(tensor.shape, at::kFloat);
    if (tensor.shape.size() == 1) return value;
    const uint64_t key =
        PhiloxKey(seed, RandomPurpose::kInit, 0, static_cast<uint64_t>(spec_.num_layers),
                  static_cast<uint64_t>(Role::kHead));
    PhiloxFillNormal(key, number, 0.0, spec_.initializer_range, value.data_ptr<float>(),
                     value.numel());
    return value;
  }

  const std::unique_ptr<Method> inner_;
  const TaskHeadSpec spec_;
};

}  // namespace

std::vector<ParameterSpec> TaskHeadTensors(const TaskHeadSpec& spec) {
  const int layer = spec.num_layers + 1;
  const std::string& module = spec.module;
  if (!spec.has_dense) return {{module + ".weight", {spec.outputs, spec.width}, layer}};
  return {{module + ".dense.weight", {spec.width, spec.width}, layer},
          {module + ".dense.bias", {spec.width}, layer},
          {module + ".out_proj.weight", {spec.outputs, spec.width}, layer},
          {module + ".out_proj.bias", {spec.outputs}, layer}};
}

std::unique_ptr<Method> WithTaskHead(std::unique_ptr<Method> inner, const TaskHeadSpec& spec) {
  return std::make_unique<HeadedMethod>(std::move(inner), spec);
}

}  // namespace graft::adapters
