#include "adapters/lora.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "adapters/fused_sites.h"
#include "adapters/lora_function.h"
#include "adapters/lora_together.h"
#include "adapters/peft_config.h"
#include "adapters/site_matching.h"
#include "adapters/tensor_check.h"
#include "base/json.h"
#include "base/philox.h"
#include "base/status.h"
#include "base/text.h"
#include "models/device.h"

namespace graft::adapters {
namespace {

using models::SiteSpec;

class LoraHook : public models::SiteHook {
 public:
  // The edit of `site`; `dropout_site` draws the mask. Of b (B_out, r) the hook uses the rows
  // [first_row, first_row + num_rows).
  LoraHook(models::SiteId site, models::SiteId dropout_site, torch::Tensor a, torch::Tensor b,
           int64_t first_row, int64_t num_rows, double scale, double dropout,
           const AttachOptions& options)
      : site_(site),
        dropout_site_(dropout_site),
        a_(std::move(a)),
        b_(std::move(b)),
        first_row_(first_row),
        num_rows_(num_rows),
        scale_(scale),
        dropout_(dropout),
        seed_(options.seed),
        compute_dtype_(options.compute_dtype) {}

  torch::Tensor EditOutput(const models::SiteInput& x, torch::Tensor y,
                           models::SiteContext& context) override {
    LoraEditOptions options{scale_, std::nullopt, compute_dtype_, {}};
    if (context.gates != nullptr) {
      const auto rows = context.gates->rows.find(site_);
      if (rows != context.gates->rows.end()) {
        options.gate = rows->second;
      } else if (!context.gates->open) {
        return y;
      }
    }
    if (dropout_ > 0 && context.training) {
      options.dropout.emplace(seed_, RandomPurpose::kAdapterDropout, dropout_site_, dropout_,
                              *context.batch);
    }
    const torch::Tensor b = num_rows_ == b_.size(0) ? b_ : b_.narrow(0, first_row_, num_rows_);
    const bool plain = !options.dropout && !options.gate.defined();
    if (together_ != nullptr && plain && !models::UsesHostKernels(x.value)) {
      if (const auto t = together_->Project(index_, x, context))
        return AddProjected(std::move(y), *t, b, scale_);
    }
    return LoraEdit(x, std::move(y), a_, b, std::move(options));
  }
  // The linear is number `index` of those that share their input.
  void ShareInput(std::shared_ptr<const LoraTogether> together, size_t index) {
    together_ = std::move(together);
    index_ = index;
  }
  const torch::Tensor& a() const { return a_; }

  models::RowEdit EditOfRow() const override {
    return {.kind = models::RowEdit::Kind::kLowRank,
            .a = a_,
            .b = b_.narrow(0, first_row_, num_rows_),
            .factor = scale_};
  }

 private:
  models::SiteId site_, dropout_site_;
  torch::Tensor a_, b_;
  int64_t first_row_, num_rows_;
  double scale_, dropout_;
  uint64_t seed_;
  torch::Dtype compute_dtype_;
  std::shared_ptr<const LoraTogether> together_;  // null: alone
  size_t index_ = 0;
};

// Linears of a layer that read the same rows.
const std::vector<std::vector<models::Role>>& RolesThatShareInput() {
  using models::Role;
  static const auto& roles = *new std::vector<std::vector<Role>>{
      {Role::kAttnQ, Role::kAttnK, Role::kAttnV}, {Role::kFfnGate, Role::kFfnUp}};
  return roles;
}

void ShareInputs(const std::map<models::SiteId, std::shared_ptr<LoraHook>>& hooks,
                 torch::Dtype compute_dtype) {
  for (const auto& [id, first] : hooks) {
    for (const std::vector<models::Role>& roles : RolesThatShareInput()) {
      std::vector<std::shared_ptr<LoraHook>> group;
      std::vector<torch::Tensor> a;
      for (const models::Role role : roles) {
        const auto found = hooks.find({id.layer, role});
        if (found == hooks.end()) continue;
        group.push_back(found->second);
        a.push_back(found->second->a());
      }
      if (group.size() < 2 || group[0] != first) continue;
      const auto together = std::make_shared<const LoraTogether>(std::move(a), compute_dtype);
      for (size_t i = 0; i < group.size(); ++i) group[i]->ShareInput(together, i);
    }
  }
}

torch::Tensor InitialA(const SiteSpec& site, int64_t rank, const AttachOptions& options) {
  torch::Tensor a = at::empty({rank, site.in_features}, at::kFloat);
  const double bound = 1.0 / std::sqrt(static_cast<double>(site.in_features));
  const uint64_t key =
      PhiloxKey(options.seed, RandomPurpose::kInit, 0, static_cast<uint64_t>(site.id.layer),
                static_cast<uint64_t>(site.id.role));
  PhiloxFillUniform(key, /*tensor_number=*/0, -bound, bound, a.data_ptr<float>(), a.numel());
  return a.to(options.device);
}

// huggingface/peft declares lora_alpha as an integer.
nlohmann::json AlphaJson(double alpha) {
  return alpha == std::floor(alpha) ? nlohmann::json(static_cast<int64_t>(alpha))
                                    : nlohmann::json(alpha);
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
       {"alora_invocation_tokens", "arrow_config", "corda_config", "kasa_config",
        "layer_replication", "lora_bias", "loftq_config", "megatron_config", "target_parameters",
        "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora"}) {
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

double Lora::ScaleOf(const Size& size) const {
  const auto rank = static_cast<double>(size.rank);
  return size.alpha / (rslora_ ? std::sqrt(rank) : rank);
}

void Lora::VisitFields(FieldVisitor& v) {
  v.TextList({"sites", "roles of the linears to adapt; all = every linear of the layers"}, &sites_);
  v.Int({"rank", "width of the low-rank product"}, &size_.rank, 1, 65536);
  v.Real({"alpha", "the product is scaled by alpha / rank"}, &size_.alpha, 1e-6, 1e6);
  VisitTrainingFields(v);
  v.Text({"fused",
          "where one module gives q, k and v: split = a product for each role, joint = one for the "
          "module, as peft trains it"},
         &fused_, {"split", "joint"});
}

void Lora::VisitTrainingFields(FieldVisitor& v) {
  v.Real({"dropout", "probability of dropping an input of the low-rank product"}, &dropout_, 0.0,
         0.99);
  v.Bool({"rslora", "scale by alpha / sqrt(rank) instead"}, &rslora_);
}

absl::StatusOr<std::vector<SiteSpec>> Lora::MatchSites(
    const std::vector<SiteSpec>& model_sites) const {
  GRAFT_ASSIGN_OR_RETURN(std::vector<SiteSpec> matched,
                         MatchRoles(sites_, LinearRoles(), model_sites));
  for (const std::vector<SiteSpec>& group : FusedGroups(matched)) {
    int64_t covered = 0;
    for (const SiteSpec& site : group) covered += site.out_features;
    if (fused_ == "joint" && covered != group[0].fused_features) {
      return RecipeError(absl::StrCat("adapter.fused: found joint with the roles ",
                                      JoinNames(RoleNamesOf(group)), " of ", group[0].module,
                                      "; it needs all of attn.q, attn.k, attn.v"));
    }
  }
  for (const SiteSpec& site : matched) {
    const int64_t most = std::min(site.in_features, site.out_features);
    if (size_.rank > most) {
      return RecipeError(absl::StrCat("adapter.rank: found ", size_.rank, ", at most ", most,
                                      " fits ", site.module, " (", site.out_features, " x ",
                                      site.in_features, ")"));
    }
  }
  return matched;
}

std::vector<ParameterSpec> Lora::Parameters(const std::vector<SiteSpec>& matched) const {
  std::vector<ParameterSpec> parameters;
  for (const SiteSpec& site : matched) {
    if (IsJoint(site) && site.fused_offset > 0) continue;  // the first role stands for the module
    const int64_t out = IsJoint(site) ? site.fused_features : site.out_features;
    const int64_t rank = SizeOf(site).rank;
    parameters.push_back({NameOf(site, kLoraAName), {rank, site.in_features}, site.id.layer});
    parameters.push_back({NameOf(site, kLoraBName), {out, rank}, site.id.layer});
  }
  return parameters;
}

absl::StatusOr<Attachment> Lora::Attach(const std::vector<SiteSpec>& matched_on_stage,
                                        const AttachOptions& options) const {
  Attachment attachment;
  torch::Tensor a, b;
  models::SiteId owner;                                     // whose A and B these are
  std::map<models::SiteId, std::shared_ptr<LoraHook>> own;  // those with an A of their own
  for (const SiteSpec& site : matched_on_stage) {
    const Size size = SizeOf(site);
    const bool shares = IsJoint(site) && site.fused_offset > 0;
    if (!shares) {
      const int64_t out = IsJoint(site) ? site.fused_features : site.out_features;
      owner = site.id;
      a = InitialA(site, size.rank, options).requires_grad_();
      b = at::zeros({out, size.rank}, at::TensorOptions().dtype(at::kFloat).device(options.device))
              .requires_grad_();
      attachment.parameters.push_back({NameOf(site, kLoraAName), a, site.id.layer});
      attachment.parameters.push_back({NameOf(site, kLoraBName), b, site.id.layer});
    }
    const int64_t first_row = IsJoint(site) ? site.fused_offset : 0;
    auto hook = std::make_shared<LoraHook>(site.id, owner, a, b, first_row, site.out_features,
                                           ScaleOf(size), dropout_, options);
    if (!IsJoint(site)) own[site.id] = hook;
    attachment.hooks.emplace_back(site.id, std::move(hook));
  }
  ShareInputs(own, options.compute_dtype);
  return attachment;
}

bool Lora::IsJoint(const SiteSpec& site) const { return site.fused() && fused_ == "joint"; }

std::string Lora::NameOf(const SiteSpec& site, const std::string& suffix) const {
  return IsJoint(site) ? PeftName(site.module, suffix) : ParameterName(site, suffix);
}

NamedTensors Lora::ToFolder(const std::vector<SiteSpec>& matched, NamedTensors parameters) const {
  return fused_ == "joint" ? parameters : JoinSplitLora(matched, std::move(parameters));
}

absl::StatusOr<NamedTensors> Lora::FromFolder(const std::vector<SiteSpec>& matched,
                                              const nlohmann::json& config, NamedTensors folder,
                                              const std::string& origin) const {
  GRAFT_RETURN_IF_ERROR(CheckPatterns(config, Patterns(matched), origin));
  return CutShared(matched, std::move(folder), origin);
}

absl::StatusOr<NamedTensors> Lora::CutShared(const std::vector<SiteSpec>& matched,
                                             NamedTensors folder, const std::string& origin) const {
  if (fused_ == "joint") return folder;
  return CutSplitLora(
      matched, [this](const SiteSpec& site) { return SizeOf(site).rank; }, std::move(folder),
      origin);
}

LoraPatterns Lora::Patterns(const std::vector<SiteSpec>& matched) const {
  return fused_ == "joint" ? LoraPatterns()
                           : SplitPatterns(matched, size_.rank, size_.alpha, rslora_);
}

nlohmann::json Lora::PeftConfig(const std::vector<SiteSpec>& matched,
                                const PeftContext& context) const {
  nlohmann::json config = CommonPeftConfig("LORA", context);
  const Size common = CommonSize(matched);
  config["lora_alpha"] = AlphaJson(common.alpha);
  const LoraPatterns patterns = Patterns(matched);
  config["alpha_pattern"] = patterns.alpha;
  config["bias"] = "none";
  config["fan_in_fan_out"] = HasFanInFanOut(matched);
  config["init_lora_weights"] = true;
  config["layers_pattern"] = nullptr;
  config["layers_to_transform"] = nullptr;
  config["lora_dropout"] = dropout_;
  config["modules_to_save"] = nullptr;
  config["r"] = common.rank;
  config["rank_pattern"] = patterns.rank;
  config["target_modules"] = TargetModules(matched);
  config["use_dora"] = false;
  config["use_rslora"] = rslora_;
  return config;
}

absl::Status Lora::CheckPeftConfig(const nlohmann::json& config, const std::string& origin) const {
  GRAFT_RETURN_IF_ERROR(CheckVariant(config, origin));
  GRAFT_ASSIGN_OR_RETURN(const int64_t rank, GetInt(config, "r", 1, 65536, origin));
  if (rank != size_.rank) {
    return Differs(origin, "r", absl::StrCat(rank), "rank", absl::StrCat(size_.rank));
  }
  GRAFT_ASSIGN_OR_RETURN(const double alpha, GetReal(config, "lora_alpha", 0.0, 1e9, origin));
  if (alpha == size_.alpha) return absl::OkStatus();
  return Differs(origin, "lora_alpha", FormatReal(alpha), "alpha", FormatReal(size_.alpha));
}

absl::Status Lora::CheckVariant(const nlohmann::json& config, const std::string& origin) const {
  GRAFT_RETURN_IF_ERROR(CheckPeftType(config, "LORA", name(), origin));
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

absl::StatusOr<LowRankEdit> Lora::LowRankAt(const SiteSpec& site,
                                            const NamedTensors& parameters) const {
  TensorCheck check(parameters);
  const Size size = SizeOf(site);
  const int64_t out = IsJoint(site) ? site.fused_features : site.out_features;
  LowRankEdit edit;
  edit.a = check.Expect(NameOf(site, kLoraAName), {size.rank, site.in_features});
  edit.b = check.Expect(NameOf(site, kLoraBName), {out, size.rank});
  GRAFT_RETURN_IF_ERROR(check.Result("adapter"));
  if (IsJoint(site)) edit.b = edit.b.narrow(0, site.fused_offset, site.out_features);
  edit.alpha = size.alpha;
  edit.rslora = rslora_;
  edit.scale = ScaleOf(size);
  return edit;
}

absl::Status Lora::Merge(const SiteSpec& site, const NamedTensors& tensors, torch::Tensor* weight,
                         torch::Tensor* /*bias*/) const {
  GRAFT_ASSIGN_OR_RETURN(const LowRankEdit edit, LowRankAt(site, tensors));
  *weight = at::addmm(*weight, edit.b.to(at::kFloat), edit.a.to(at::kFloat), /*beta=*/1,
                      /*alpha=*/edit.scale);
  return absl::OkStatus();
}

}  // namespace graft::adapters
