#include "adapters/red.h"

#include <map>

#include <ATen/ATen.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "adapters/fused_sites.h"
#include "adapters/ia3.h"
#include "adapters/peft_config.h"
#include "adapters/site_matching.h"
#include "adapters/tensor_check.h"
#include "adapters/vector_edit.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::adapters {
namespace {

using models::Role;
using models::SiteSpec;

constexpr const char* kScaleName = "red_scale";
constexpr const char* kBiasName = "red_bias";

class RedHook : public models::SiteHook {
 public:
  // An undefined vector is absent.
  RedHook(torch::Tensor scale, torch::Tensor bias, bool in_place)
      : scale_(std::move(scale)), bias_(std::move(bias)), in_place_(in_place) {}

  torch::Tensor EditOutput(const models::SiteInput& /*x*/, torch::Tensor y,
                           models::SiteContext& /*context*/) override {
    return VectorEdit(std::move(y), scale_, bias_, in_place_);
  }
  models::RowEdit EditOfRow() const override {
    return {.kind = models::RowEdit::Kind::kVectors, .scale = scale_, .bias = bias_};
  }

 private:
  torch::Tensor scale_, bias_;
  bool in_place_;
};

// Whether the site's module is a linear whose output the edit can be folded into.
bool EditsLinearOutput(Role role) { return role != Role::kLayerOut; }

}  // namespace

void Red::VisitFields(FieldVisitor& v) {
  v.Text({"what", "vectors to train at each site"}, &what_, {"scale_and_bias", "scale", "bias"});
  v.TextList({"sites",
              "roles of the hidden states (attn.out, ffn.out, layer.out) or linears to "
              "edit; all = every linear of the layers"},
             &sites_);
}

absl::StatusOr<std::vector<SiteSpec>> Red::MatchSites(
    const std::vector<SiteSpec>& model_sites) const {
  std::vector<Role> allowed = LinearRoles();
  for (const Role role : {Role::kAttnOut, Role::kFfnOut, Role::kLayerOut}) allowed.push_back(role);
  GRAFT_ASSIGN_OR_RETURN(std::vector<SiteSpec> matched, MatchRoles(sites_, allowed, model_sites));
  std::map<std::string, Role> role_of_place;
  for (const SiteSpec& site : matched) {
    const auto [other, inserted] =
        role_of_place.emplace(ParameterName(site, kScaleName), site.id.role);
    if (!inserted) {
      return RecipeError(absl::StrCat("adapter.sites: found ", models::RoleName(other->second),
                                      " and ", models::RoleName(site.id.role),
                                      ", which are the same place (", site.module,
                                      "); allowed: one of them"));
    }
  }
  return matched;
}

std::vector<ParameterSpec> Red::Parameters(const std::vector<SiteSpec>& matched) const {
  std::vector<ParameterSpec> parameters;
  for (const SiteSpec& site : matched) {
    const std::vector<int64_t> shape = {site.out_features};
    const int layer = site.id.layer;
    if (has_scale()) parameters.push_back({ParameterName(site, kScaleName), shape, layer});
    if (has_bias()) parameters.push_back({ParameterName(site, kBiasName), shape, layer});
  }
  return parameters;
}

absl::StatusOr<Attachment> Red::Attach(const std::vector<SiteSpec>& matched_on_stage,
                                       const AttachOptions& options) const {
  const auto vector = at::TensorOptions().dtype(at::kFloat).device(options.device);
  Attachment attachment;
  for (const SiteSpec& site : matched_on_stage) {
    torch::Tensor scale, bias;
    const int layer = site.id.layer;
    if (has_scale()) {
      scale = at::ones({site.out_features}, vector).requires_grad_();
      attachment.parameters.push_back({ParameterName(site, kScaleName), scale, layer});
    }
    if (has_bias()) {
      bias = at::zeros({site.out_features}, vector).requires_grad_();
      attachment.parameters.push_back({ParameterName(site, kBiasName), bias, layer});
    }
    attachment.hooks.emplace_back(
        site.id, std::make_shared<RedHook>(scale, bias, models::IsLinear(site.id.role)));
  }
  return attachment;
}

nlohmann::json Red::PeftConfig(const std::vector<SiteSpec>& matched,
                               const PeftContext& context) const {
  nlohmann::json config = CommonPeftConfig("RED", context);
  config["what"] = what_;
  config["sites"] = RoleNamesOf(matched);
  return config;
}

absl::Status Red::CheckPeftConfig(const nlohmann::json& config, const std::string& origin) const {
  GRAFT_RETURN_IF_ERROR(CheckPeftType(config, "RED", name(), origin));
  GRAFT_ASSIGN_OR_RETURN(const std::string what, GetStringOr(config, "what", what_, origin));
  if (what == what_) return absl::OkStatus();
  return InputError(
      absl::StrCat(origin, ": what is \"", Printable(what), "\", but adapter.what is ", what_));
}

NamedTensors Red::ToFolder(const std::vector<SiteSpec>& matched, NamedTensors parameters) const {
  for (const FusedVector& vector : FusedVectors()) {
    parameters = PackFused(matched, vector, std::move(parameters));
  }
  return parameters;
}

absl::StatusOr<NamedTensors> Red::FromFolder(const std::vector<SiteSpec>& matched,
                                             const nlohmann::json& /*config*/, NamedTensors folder,
                                             const std::string& origin) const {
  for (const FusedVector& vector : FusedVectors()) {
    GRAFT_ASSIGN_OR_RETURN(folder, UnpackFused(matched, vector, std::move(folder), origin));
  }
  return folder;
}

std::vector<FusedVector> Red::FusedVectors() const {
  std::vector<FusedVector> vectors;
  if (has_scale()) vectors.push_back({kScaleName, 1.0f});
  if (has_bias()) vectors.push_back({kBiasName, 0.0f});
  return vectors;
}

absl::Status Red::CheckFitsPeft(const std::vector<SiteSpec>& matched) const {
  if (has_scale() && has_bias()) {
    return RecipeError(
        "export.as: found peft with adapter.what scale_and_bias, of which each half alone has a "
        "type; allowed: own, or export.merge");
  }
  for (const SiteSpec& site : matched) {
    if (!EditsLinearOutput(site.id.role)) {
      return RecipeError(absl::StrCat("export.as: found peft with site ",
                                      models::RoleName(site.id.role),
                                      ", which is no linear's output; allowed: own"));
    }
    if (site.fan_in_fan_out && !has_scale()) {
      return RecipeError(absl::StrCat("export.as: found peft with adapter.what bias at ",
                                      site.module,
                                      ", a Conv1D, which huggingface/peft's BEFT does not know; "
                                      "allowed: own, or export.merge"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<FolderContent> Red::AsPeft(const std::vector<SiteSpec>& matched,
                                          const PeftContext& context,
                                          NamedTensors parameters) const {
  GRAFT_RETURN_IF_ERROR(CheckFitsPeft(matched));
  FolderContent content;
  if (has_scale()) {
    content.config = Ia3PeftConfig(matched, nlohmann::json::array(), context);
  } else {
    content.config = CommonPeftConfig("BEFT", context);
    content.config["modules_to_save"] = nullptr;
    content.config["target_modules"] = TargetModules(matched);
  }
  const std::string own = has_scale() ? kScaleName : kBiasName;
  for (auto& [name, value] : ToFolder(matched, std::move(parameters))) {
    if (!absl::EndsWith(name, own)) {
      content.tensors.emplace_back(name, value);  // a task head's
      continue;
    }
    const std::string module = name.substr(0, name.size() - own.size());
    content.tensors.emplace_back(module + (has_scale() ? "ia3_l" : "beft_bias"),
                                 has_scale() ? value.view({-1, 1}) : value.view({1, -1}));
  }
  return content;
}

absl::Status Red::Merge(const SiteSpec& site, const NamedTensors& tensors, torch::Tensor* weight,
                        torch::Tensor* bias) const {
  if (!EditsLinearOutput(site.id.role)) return Method::Merge(site, tensors, weight, bias);
  TensorCheck check(tensors);
  torch::Tensor scale, shift;
  if (has_scale()) scale = check.Expect(ParameterName(site, kScaleName), {site.out_features});
  if (has_bias()) shift = check.Expect(ParameterName(site, kBiasName), {site.out_features});
  GRAFT_RETURN_IF_ERROR(check.Result("adapter"));
  if (has_scale()) {
    *weight = scale.to(at::kFloat).unsqueeze(1) * *weight;
    if (bias->defined()) *bias = scale.to(at::kFloat) * *bias;
  }
  if (has_bias()) {
    *bias = bias->defined() ? *bias + shift.to(at::kFloat) : shift.to(at::kFloat).clone();
  }
  return absl::OkStatus();
}

bool Red::MergeAddsBias(const SiteSpec& site) const {
  return has_bias() && EditsLinearOutput(site.id.role);
}

}  // namespace graft::adapters
