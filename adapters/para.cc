#include "adapters/para.h"

#include <algorithm>
#include <map>
#include <memory>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "adapters/generator.h"
#include "adapters/para_generator.h"
#include "adapters/peft_config.h"
#include "adapters/site_matching.h"
#include "base/status.h"

namespace graft::adapters {
namespace {

using models::Role;
using models::SiteSpec;

constexpr double kDownDeviation = 0.02;
// Within 0.005 of GELU on [-5, 5] (methods.md 6).
constexpr float kRationalA[] = {0.0f, 0.5f, 0.410750f, 0.113566f, 0.011184f, 0.000171f};
constexpr float kRationalB[] = {0.0f, 0.227132f, 0.0f, 0.000341f};

Pooling ParsePooling(const std::string& name) {
  if (name == "last") return Pooling::kLast;
  if (name == "max") return Pooling::kMax;
  return name == "attention" ? Pooling::kAttention : Pooling::kMean;
}

Activation ParseActivation(const std::string& name) {
  if (name == "relu") return Activation::kRelu;
  return name == "rational" ? Activation::kRational : Activation::kGelu;
}

// At layer.in: reads the hidden state.
class ReadHiddenHook : public models::SiteHook {
 public:
  explicit ReadHiddenHook(std::shared_ptr<ParaGenerator> generator)
      : generator_(std::move(generator)) {}
  torch::Tensor EditOutput(const models::SiteInput& /*x*/, torch::Tensor y,
                           models::SiteContext& context) override {
    generator_->Prepare({y, nullptr}, context);
    return y;
  }
  // Reads prompts only.
  models::RowEdit EditOfRow() const override { return {.kind = models::RowEdit::Kind::kNothing}; }

 private:
  std::shared_ptr<ParaGenerator> generator_;
};

// At attn.q, the first of the layer's linears: reads its input, the normed hidden state.
class ReadNormedHook : public models::SiteHook {
 public:
  explicit ReadNormedHook(std::shared_ptr<ParaGenerator> generator)
      : generator_(std::move(generator)) {}
  models::SiteInput EditInput(const models::SiteInput& x, models::SiteContext& context) override {
    generator_->Prepare(x, context);
    return x;
  }
  models::RowEdit EditOfRow() const override { return {.kind = models::RowEdit::Kind::kNothing}; }

 private:
  std::shared_ptr<ParaGenerator> generator_;
};

class ScaleHook : public models::SiteHook {
 public:
  ScaleHook(std::shared_ptr<ParaGenerator> generator, size_t part, bool scales_input)
      : generator_(std::move(generator)), part_(part), scales_input_(scales_input) {}

  models::SiteInput EditInput(const models::SiteInput& x, models::SiteContext& context) override {
    return scales_input_ ? models::SiteInput{generator_->Scale(part_, x, context), nullptr} : x;
  }
  torch::Tensor EditOutput(const models::SiteInput& /*x*/, torch::Tensor y,
                           models::SiteContext& context) override {
    return scales_input_ ? y : generator_->Scale(part_, {y, nullptr}, context);
  }
  models::RowEdit EditOfRow() const override {
    return {.kind = models::RowEdit::Kind::kVectors,
            .at_input = scales_input_,
            .owner = generator_.get(),
            .begin = generator_->FirstScale(part_),
            .width = generator_->Width(part_)};
  }

 private:
  std::shared_ptr<ParaGenerator> generator_;
  size_t part_;
  bool scales_input_;
};

torch::Tensor Leaf(const float* values, int64_t count, torch::Device device) {
  return at::tensor(at::ArrayRef<float>(values, static_cast<size_t>(count)))
      .to(device)
      .requires_grad_();
}

}  // namespace

int64_t Para::LayerSites::num_scales() const {
  int64_t count = 0;
  for (const SiteSpec& site : scaled) count += site.out_features;
  return count;
}

std::vector<Para::LayerSites> Para::ByLayer(const std::vector<SiteSpec>& matched) {
  std::map<int, LayerSites> layers;
  for (const SiteSpec& site : matched) {
    LayerSites& layer = layers[site.id.layer];
    layer.layer = site.id.layer;
    if (site.id.role == Role::kLayerIn) {
      layer.module = site.module;
      layer.input = site.out_features;
    } else {
      layer.scaled.push_back(site);
    }
  }
  std::vector<LayerSites> result;
  for (auto& [number, layer] : layers) result.push_back(std::move(layer));
  return result;
}

// An output is kept for the gradients of its scales; up states are rebuilt, layer.in is only read.
int64_t Para::KeptPerRow(const models::SiteSpec& site) const {
  const models::Role role = site.id.role;
  return role == models::Role::kAttnQ || role == models::Role::kAttnV ? site.out_features : 0;
}

void Para::VisitFields(FieldVisitor& v) {
  v.TextList(
      {"sites", "what is scaled: attn.q and attn.v their output, ffn.up the FFN's inner state"},
      &sites_, {"attn.q", "attn.v", "ffn.up"});
  v.Int({"rank", "inner width of a layer's generator"}, &rank_, 1, 65536);
  v.Text({"pooling", "of the prompt's hidden states"}, &pooling_,
         {"mean", "last", "max", "attention"});
  v.Text({"activation", "of the generator; rational has 10 trained coefficients a layer"},
         &activation_, {"gelu", "relu", "rational"});
  v.Text({"input", "what is pooled: the layer's input, or that after the attention norm"}, &input_,
         {"layer_in", "normed"});
  v.Bool({"bias", "biases in the generator"}, &bias_);
  v.Real({"dropout", "probability of dropping a pooled feature"}, &dropout_, 0.0, 0.99);
}

absl::StatusOr<std::vector<SiteSpec>> Para::MatchSites(
    const std::vector<SiteSpec>& model_sites) const {
  GRAFT_ASSIGN_OR_RETURN(
      const std::vector<SiteSpec> scaled,
      MatchRoles(sites_, {Role::kAttnQ, Role::kAttnV, Role::kFfnUp}, model_sites));
  std::vector<SiteSpec> matched;
  for (const SiteSpec& site : model_sites) {
    const bool is_scaled = std::any_of(scaled.begin(), scaled.end(),
                                       [&](const SiteSpec& other) { return other.id == site.id; });
    if (is_scaled || site.id.role == Role::kLayerIn) matched.push_back(site);
  }
  return matched;
}

std::vector<ParameterSpec> Para::Parameters(const std::vector<SiteSpec>& matched) const {
  std::vector<ParameterSpec> parameters;
  for (const LayerSites& layer : ByLayer(matched)) {
    const bool reads = layer.input > 0, scales = !layer.scaled.empty();
    const auto add = [&](bool exists, const char* suffix, std::vector<int64_t> shape) {
      if (exists) {
        parameters.push_back({PeftName(layer.module, suffix), std::move(shape), layer.layer});
      }
    };
    add(reads, "para.down.weight", {rank_, layer.input});
    add(scales, "para.up.weight", {layer.num_scales(), rank_});
    add(reads && bias_, "para.down.bias", {rank_});
    add(scales && bias_, "para.up.bias", {layer.num_scales()});
    add(reads && pooling_ == "attention", "para.pool.weight", {layer.input});
    add(reads && activation_ == "rational", "para.act.a", {6});
    add(reads && activation_ == "rational", "para.act.b", {4});
  }
  return parameters;
}

absl::StatusOr<Attachment> Para::Attach(const std::vector<SiteSpec>& matched_on_stage,
                                        const AttachOptions& options) const {
  Attachment attachment;
  for (const LayerSites& layer : ByLayer(matched_on_stage)) {
    AttachLayer(layer, options, &attachment);
  }
  return attachment;
}

void Para::AttachLayer(const LayerSites& layer, const AttachOptions& options,
                       Attachment* attachment) const {
  const GeneratorInit init(options, layer.layer, kGeneratorSite);
  ParaParameters p;
  ParaGeneratorOptions generator{.pooling = ParsePooling(pooling_),
                                 .activation = ParseActivation(activation_),
                                 .dropout = dropout_,
                                 .layer = layer.layer,
                                 .seed = options.seed,
                                 .compute_dtype = options.compute_dtype};
  const auto add = [&](const char* suffix, const torch::Tensor& value) {
    attachment->parameters.push_back({PeftName(layer.module, suffix), value, layer.layer});
  };
  add("para.down.weight", p.down = init.Normal(0, {rank_, layer.input}, kDownDeviation));
  add("para.up.weight", p.up = init.Constant({layer.num_scales(), rank_}, 0.0));
  if (bias_) {
    add("para.down.bias", p.down_bias = init.Constant({rank_}, 0.0));
    add("para.up.bias", p.up_bias = init.Constant({layer.num_scales()}, 0.0));
  }
  if (generator.pooling == Pooling::kAttention) {
    add("para.pool.weight", p.pool = init.Constant({layer.input}, 0.0));
  }
  if (generator.activation == Activation::kRational) {
    add("para.act.a", p.a = Leaf(kRationalA, 6, options.device));
    add("para.act.b", p.b = Leaf(kRationalB, 4, options.device));
  }
  for (const SiteSpec& site : layer.scaled) generator.widths.push_back(site.out_features);
  const auto shared = std::make_shared<ParaGenerator>(std::move(p), std::move(generator));
  attachment->request_scales.push_back({shared, layer.scaled});
  if (input_ == "normed") {
    attachment->hooks.push_back(
        {{layer.layer, Role::kAttnQ}, std::make_shared<ReadNormedHook>(shared)});
  } else {
    attachment->hooks.push_back(
        {{layer.layer, Role::kLayerIn}, std::make_shared<ReadHiddenHook>(shared)});
  }
  for (size_t part = 0; part < layer.scaled.size(); ++part) {
    // The up states are scaled where they enter ffn.down, behind gate and activation.
    const bool is_up = layer.scaled[part].id.role == Role::kFfnUp;
    attachment->hooks.push_back({{layer.layer, is_up ? Role::kFfnDown : layer.scaled[part].id.role},
                                 std::make_shared<ScaleHook>(shared, part, is_up)});
  }
}

nlohmann::json Para::PeftConfig(const std::vector<SiteSpec>& matched,
                                const PeftContext& context) const {
  nlohmann::json config = CommonPeftConfig("PARA", context);
  std::vector<SiteSpec> scaled;
  for (const SiteSpec& site : matched) {
    if (site.id.role != Role::kLayerIn) scaled.push_back(site);
  }
  config["sites"] = RoleNamesOf(scaled);
  config["rank"] = rank_;
  config["pooling"] = pooling_;
  config["activation"] = activation_;
  config["input"] = input_;
  config["bias"] = bias_;
  config["dropout"] = dropout_;
  return config;
}

absl::Status Para::CheckPeftConfig(const nlohmann::json& config, const std::string& origin) const {
  GRAFT_RETURN_IF_ERROR(CheckPeftType(config, "PARA", name(), origin));
  GRAFT_RETURN_IF_ERROR(CheckSameText(config, "pooling", pooling_, origin));
  GRAFT_RETURN_IF_ERROR(CheckSameText(config, "activation", activation_, origin));
  return CheckSameText(config, "input", input_, origin);
}

}  // namespace graft::adapters
