#include "adapters/ia3.h"

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "adapters/fused_sites.h"
#include "adapters/peft_config.h"
#include "adapters/row_scale.h"
#include "adapters/site_matching.h"
#include "adapters/tensor_check.h"
#include "base/status.h"

namespace graft::adapters {
namespace {

using models::SiteSpec;

bool ScalesInput(const SiteSpec& site) { return site.id.role == models::Role::kFfnDown; }

std::vector<int64_t> ShapeOf(const SiteSpec& site) {
  return ScalesInput(site) ? std::vector<int64_t>{1, site.in_features}
                           : std::vector<int64_t>{site.out_features, 1};
}

constexpr const char* kName = "ia3_l";

std::string NameOf(const SiteSpec& site) { return ParameterName(site, kName); }

class Ia3Hook : public models::SiteHook {
 public:
  Ia3Hook(torch::Tensor l, bool scales_input) : l_(std::move(l)), scales_input_(scales_input) {}

  models::SiteInput EditInput(const models::SiteInput& x,
                              models::SiteContext& /*context*/) override {
    return scales_input_ ? models::SiteInput{Scale(x), nullptr} : x;
  }
  torch::Tensor EditOutput(const models::SiteInput& /*x*/, torch::Tensor y,
                           models::SiteContext& /*context*/) override {
    return scales_input_ ? y : Scale({y, nullptr});
  }
  models::RowEdit EditOfRow() const override {
    return {.kind = models::RowEdit::Kind::kVectors,
            .at_input = scales_input_,
            .scale = l_.view({-1})};
  }

 private:
  // One vector for all rows.
  torch::Tensor Scale(const models::SiteInput& x) const {
    return ScaleRows(x, l_.view({1, -1}), {x.value.size(0)});
  }

  torch::Tensor l_;
  bool scales_input_;
};

}  // namespace

// An output is kept for the gradient of its vector; the input of ffn.down is rebuilt.
int64_t Ia3::KeptPerRow(const SiteSpec& site) const {
  return ScalesInput(site) ? 0 : site.out_features;
}

void Ia3::VisitFields(FieldVisitor& v) {
  v.TextList({"sites",
              "roles of the linears to scale: ffn.down its input, the others their output; all = "
              "every linear of the layers"},
             &sites_);
}

absl::StatusOr<std::vector<SiteSpec>> Ia3::MatchSites(
    const std::vector<SiteSpec>& model_sites) const {
  return MatchRoles(sites_, LinearRoles(), model_sites);
}

std::vector<ParameterSpec> Ia3::Parameters(const std::vector<SiteSpec>& matched) const {
  std::vector<ParameterSpec> parameters;
  for (const SiteSpec& site : matched) {
    parameters.push_back({NameOf(site), ShapeOf(site), site.id.layer});
  }
  return parameters;
}

absl::StatusOr<Attachment> Ia3::Attach(const std::vector<SiteSpec>& matched_on_stage,
                                       const AttachOptions& options) const {
  const auto vector = at::TensorOptions().dtype(at::kFloat).device(options.device);
  Attachment attachment;
  for (const SiteSpec& site : matched_on_stage) {
    torch::Tensor l = at::ones(ShapeOf(site), vector).requires_grad_();
    attachment.parameters.push_back({NameOf(site), l, site.id.layer});
    attachment.hooks.emplace_back(site.id, std::make_shared<Ia3Hook>(l, ScalesInput(site)));
  }
  return attachment;
}

nlohmann::json Ia3PeftConfig(const std::vector<SiteSpec>& matched,
                             const nlohmann::json& feedforward, const PeftContext& context) {
  nlohmann::json config = CommonPeftConfig("IA3", context);
  config["exclude_modules"] = nullptr;
  config["fan_in_fan_out"] = HasFanInFanOut(matched);
  config["feedforward_modules"] = feedforward;
  config["init_ia3_weights"] = true;
  config["modules_to_save"] = nullptr;
  config["target_modules"] = TargetModules(matched);
  return config;
}

nlohmann::json Ia3::PeftConfig(const std::vector<SiteSpec>& matched,
                               const PeftContext& context) const {
  nlohmann::json feedforward = nlohmann::json::array();
  for (const SiteSpec& site : matched) {
    if (ScalesInput(site)) feedforward.push_back(site.module);
  }
  return Ia3PeftConfig(matched, feedforward, context);
}

absl::Status Ia3::CheckPeftConfig(const nlohmann::json& config, const std::string& origin) const {
  return CheckPeftType(config, "IA3", name(), origin);
}

NamedTensors Ia3::ToFolder(const std::vector<SiteSpec>& matched, NamedTensors parameters) const {
  return PackFused(matched, {kName, 1.0f}, std::move(parameters));
}

absl::StatusOr<NamedTensors> Ia3::FromFolder(const std::vector<SiteSpec>& matched,
                                             const nlohmann::json& /*config*/, NamedTensors folder,
                                             const std::string& origin) const {
  return UnpackFused(matched, {kName, 1.0f}, std::move(folder), origin);
}

absl::Status Ia3::Merge(const SiteSpec& site, const NamedTensors& tensors, torch::Tensor* weight,
                        torch::Tensor* bias) const {
  TensorCheck check(tensors);
  torch::Tensor l = check.Expect(NameOf(site), ShapeOf(site));
  GRAFT_RETURN_IF_ERROR(check.Result("adapter"));
  l = l.to(at::kFloat);
  *weight = *weight * l;  // (1, in) scales columns, (out, 1) rows
  if (!ScalesInput(site) && bias->defined()) *bias = *bias * l.view(-1);
  return absl::OkStatus();
}

}  // namespace graft::adapters
