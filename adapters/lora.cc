#include "adapters/lora.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "adapters/lora_function.h"
#include "adapters/peft_config.h"
#include "adapters/site_matching.h"
#include "adapters/tensor_check.h"
#include "base/json.h"
#include "base/philox.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::adapters {
namespace {

using models::SiteSpec;

constexpr const char* kAName = "lora_A.weight";
constexpr const char* kBName = "lora_B.weight";

class LoraHook : public models::SiteHook {
 public:
  LoraHook(models::SiteId site, torch::Tensor a, torch::Tensor b, double scale, double dropout,
           const AttachOptions& options)
      : site_(site),
        a_(std::move(a)),
        b_(std::move(b)),
        scale_(scale),
        dropout_(dropout),
        seed_(options.seed),
        compute_dtype_(options.compute_dtype) {}

  torch::Tensor EditOutput(const models::SiteInput& x, torch::Tensor y,
                           models::SiteContext& context) override {
    LoraEditOptions options{scale_, std::nullopt, compute_dtype_};
    if (dropout_ > 0 && context.training) {
      options.dropout.emplace(seed_, RandomPurpose::kAdapterDropout, site_, dropout_,
                              *context.batch);
    }
    return LoraEdit(x, std::move(y), a_, b_, std::move(options));
  }

 private:
  models::SiteId site_;
  torch::Tensor a_, b_;
  double scale_, dropout_;
  uint64_t seed_;
  torch::Dtype compute_dtype_;
};

torch::Tensor InitialA(const SiteSpec& site, int64_t rank, const AttachOptions& options) {
  torch::Tensor a = at::empty({rank, site.in_features}, at::kFloat);
  const double bound = 1.0 / std::sqrt(static_cast<double>(site.in_features));
  const uint64_t key =
      PhiloxKey(options.seed, RandomPurpose::kInit, 0, static_cast<uint64_t>(site.id.layer),
                static_cast<uint64_t>(site.id.role));
  PhiloxFillUniform(key, /*tensor_number=*/0, -bound, bound, a.data_ptr<float>(), a.numel());
  return a.to(options.device);
}

absl::Status Differs(const std::string& origin, const std::string& key, const std::string& found,
                     const std::string& recipe_key, const std::string& wanted) {
  return InputError(
      absl::StrCat(origin, ": ", key, " is ", found, ", but adapter.", recipe_key, " is ", wanted));
}

// huggingface/peft's variants that give the same tensors another meaning: absent, null, false,
// empty, or an error.
absl::Status RefuseVariants(const nlohmann::json& config, const std::string& origin) {
  for (const char* key :
       {"alora_invocation_tokens", "alpha_pattern", "arrow_config", "corda_config", "kasa_config",
        "layer_replication", "lora_bias", "loftq_config", "megatron_config", "rank_pattern",
        "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora"}) {
    const auto found = config.find(key);
    if (found == config.end() || found->is_null() || found->empty()) continue;
    if (found->is_boolean() && !found->get<bool>()) continue;
    return InputError(absl::StrCat(origin, ": ", key, " is ", DescribeJson(*found),
                                   "; method `lora` reads plain LoRA, where it is absent"));
  }
  return absl::OkStatus();
}

// Initialisations that also change the frozen weights, which an adapter folder does not carry.
absl::Status CheckInit(const nlohmann::json& config, const std::string& origin) {
  const auto found = config.find("init_lora_weights");
  if (found == config.end() || found->is_null() || found->is_boolean()) return absl::OkStatus();
  static const std::vector<std::string> kKeepBase = {"gaussian", "eva", "orthogonal"};
  if (found->is_string() &&
      std::count(kKeepBase.begin(), kKeepBase.end(), found->get<std::string>()) != 0) {
    return absl::OkStatus();
  }
  return InputError(absl::StrCat(origin, ": init_lora_weights is ", DescribeJson(*found),
                                 ", allowed: true, false, ", JoinNames(kKeepBase),
                                 " (others change the frozen weights)"));
}

}  // namespace

double Lora::scale() const {
  const auto rank = static_cast<double>(rank_);
  return alpha_ / (rslora_ ? std::sqrt(rank) : rank);
}

void Lora::VisitFields(FieldVisitor& v) {
  v.TextList({"sites", "roles of the linears to adapt; all = every linear of the layers"}, &sites_);
  v.Int({"rank", "width of the low-rank product"}, &rank_, 1, 65536);
  v.Real({"alpha", "the product is scaled by alpha / rank"}, &alpha_, 1e-6, 1e6);
  v.Real({"dropout", "probability of dropping an input of the low-rank product"}, &dropout_, 0.0,
         0.99);
  v.Bool({"rslora", "scale by alpha / sqrt(rank) instead"}, &rslora_);
}

absl::StatusOr<std::vector<SiteSpec>> Lora::MatchSites(
    const std::vector<SiteSpec>& model_sites) const {
  GRAFT_ASSIGN_OR_RETURN(std::vector<SiteSpec> matched,
                         MatchRoles(sites_, LinearRoles(), model_sites));
  for (const SiteSpec& site : matched) {
    const int64_t most = std::min(site.in_features, site.out_features);
    if (rank_ > most) {
      return RecipeError(absl::StrCat("adapter.rank: found ", rank_, ", at most ", most, " fits ",
                                      site.module, " (", site.out_features, " x ", site.in_features,
                                      ")"));
    }
  }
  return matched;
}

std::vector<ParameterSpec> Lora::Parameters(const std::vector<SiteSpec>& matched) const {
  std::vector<ParameterSpec> parameters;
  for (const SiteSpec& site : matched) {
    parameters.push_back({PeftName(site.module, kAName), {rank_, site.in_features}, site.id.layer});
    parameters.push_back(
        {PeftName(site.module, kBName), {site.out_features, rank_}, site.id.layer});
  }
  return parameters;
}

absl::StatusOr<Attachment> Lora::Attach(const std::vector<SiteSpec>& matched_on_stage,
                                        const AttachOptions& options) const {
  Attachment attachment;
  for (const SiteSpec& site : matched_on_stage) {
    torch::Tensor a = InitialA(site, rank_, options).requires_grad_();
    torch::Tensor b = at::zeros({site.out_features, rank_},
                                at::TensorOptions().dtype(at::kFloat).device(options.device))
                          .requires_grad_();
    attachment.parameters.push_back({PeftName(site.module, kAName), a, site.id.layer});
    attachment.parameters.push_back({PeftName(site.module, kBName), b, site.id.layer});
    attachment.hooks.emplace_back(
        site.id, std::make_shared<LoraHook>(site.id, a, b, scale(), dropout_, options));
  }
  return attachment;
}

nlohmann::json Lora::PeftConfig(const std::vector<SiteSpec>& matched,
                                const PeftContext& context) const {
  nlohmann::json config = CommonPeftConfig("LORA", context);
  // Full names: huggingface/peft matches list entries by suffix (methods.md 15).
  nlohmann::json modules = nlohmann::json::array();
  bool fan_in_fan_out = false;
  for (const SiteSpec& site : matched) {
    modules.push_back(site.module);
    fan_in_fan_out = fan_in_fan_out || site.fan_in_fan_out;
  }
  // huggingface/peft declares lora_alpha as an integer.
  const bool whole = alpha_ == std::floor(alpha_);
  config["lora_alpha"] =
      whole ? nlohmann::json(static_cast<int64_t>(alpha_)) : nlohmann::json(alpha_);
  config["alpha_pattern"] = nlohmann::json::object();
  config["bias"] = "none";
  config["fan_in_fan_out"] = fan_in_fan_out;
  config["init_lora_weights"] = true;
  config["layers_pattern"] = nullptr;
  config["layers_to_transform"] = nullptr;
  config["lora_dropout"] = dropout_;
  config["modules_to_save"] = nullptr;
  config["r"] = rank_;
  config["rank_pattern"] = nlohmann::json::object();
  config["target_modules"] = modules;
  config["use_dora"] = false;
  config["use_rslora"] = rslora_;
  return config;
}

absl::Status Lora::CheckPeftConfig(const nlohmann::json& config, const std::string& origin) const {
  GRAFT_RETURN_IF_ERROR(CheckPeftType(config, "LORA", name(), origin));
  GRAFT_ASSIGN_OR_RETURN(const int64_t rank, GetInt(config, "r", 1, 65536, origin));
  if (rank != rank_) {
    return Differs(origin, "r", absl::StrCat(rank), "rank", absl::StrCat(rank_));
  }
  GRAFT_ASSIGN_OR_RETURN(const double alpha, GetReal(config, "lora_alpha", 0.0, 1e9, origin));
  if (alpha != alpha_) {
    return Differs(origin, "lora_alpha", FormatReal(alpha), "alpha", FormatReal(alpha_));
  }
  GRAFT_ASSIGN_OR_RETURN(const bool rslora, GetBoolOr(config, "use_rslora", false, origin));
  if (rslora != rslora_) {
    return Differs(origin, "use_rslora", rslora ? "true" : "false", "rslora",
                   rslora_ ? "true" : "false");
  }
  GRAFT_RETURN_IF_ERROR(RefuseVariants(config, origin));
  GRAFT_RETURN_IF_ERROR(CheckInit(config, origin));
  GRAFT_ASSIGN_OR_RETURN(const std::string bias, GetStringOr(config, "bias", "none", origin));
  if (bias != "none") {
    return InputError(
        absl::StrCat(origin, ": bias is \"", Printable(bias), "\", allowed: \"none\""));
  }
  return absl::OkStatus();
}

absl::Status Lora::Merge(const SiteSpec& site, const NamedTensors& tensors, torch::Tensor* weight,
                         torch::Tensor* /*bias*/) const {
  TensorCheck check(tensors);
  const torch::Tensor a = check.Expect(PeftName(site.module, kAName), {rank_, site.in_features});
  const torch::Tensor b = check.Expect(PeftName(site.module, kBName), {site.out_features, rank_});
  GRAFT_RETURN_IF_ERROR(check.Result("adapter"));
  *weight = at::addmm(*weight, b.to(at::kFloat), a.to(at::kFloat), /*beta=*/1, /*alpha=*/scale());
  return absl::OkStatus();
}

}  // namespace graft::adapters
