#include "trainer/tenants/variants.h"

#include <algorithm>
#include <functional>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "adapters/adapter.h"
#include "adapters/setting.h"
#include "base/file.h"
#include "base/status.h"

namespace graft::trainer {
namespace {

// Writes the setting of FanLoRA at this rank; returns its path.
absl::StatusOr<std::string> WriteSetting(const models::ModelConfig& config,
                                         const std::string& folder, int64_t modules, int64_t rank) {
  std::vector<std::vector<std::string>> linears(static_cast<size_t>(config.num_layers));
  for (const models::SiteSpec& site : models::ListSites(config)) {
    if (models::IsLinear(site.id.role))
      linears[static_cast<size_t>(site.id.layer)].push_back(models::RoleName(site.id.role));
  }
  nlohmann::json keep = nlohmann::json::array();
  for (size_t layer = 0; layer < linears.size(); ++layer) {
    const std::vector<std::string>& all = linears[layer];
    const size_t count = std::min(all.size(), static_cast<size_t>(modules));
    std::vector<bool> kept(all.size());
    for (size_t i = 0; i < count; ++i) kept[(layer * count + i) % all.size()] = true;
    nlohmann::json roles = nlohmann::json::array();
    for (size_t i = 0; i < all.size(); ++i) {
      if (kept[i]) roles.push_back(all[i]);
    }
    keep.push_back({{"layer", layer}, {"roles", roles}, {"rank", rank}, {"alpha", 2.0 * rank}});
  }
  const nlohmann::json setting = {{"format", adapters::kSettingFormat},
                                  {"version", 1},
                                  {"model_type", config.model_type},
                                  {"num_layers", config.num_layers},
                                  {"selection", {{"rule", "in turn"}, {"k", modules}}},
                                  {"keep", keep}};
  const std::string path = JoinPath(folder, absl::StrCat("setting-", modules, "x", rank, ".json"));
  GRAFT_RETURN_IF_ERROR(AtomicWriteFile(path, setting.dump(2)));
  return path;
}

// The keys of a method at size number `size`: a rank, or the width of a generator.
absl::StatusOr<FieldList> FieldsAt(const Recipe& recipe, const models::ModelConfig& config,
                                   const std::string& folder, const std::string& method,
                                   int64_t size) {
  const std::string number = absl::StrCat(size);
  if (method == "lora") {
    return FieldList{{"sites", "all"}, {"rank", number}, {"alpha", absl::StrCat(2 * size)}};
  }
  if (method == "fanlora") {
    GRAFT_ASSIGN_OR_RETURN(const std::string setting,
                           WriteSetting(config, folder, recipe.tenants.modules, size));
    return FieldList{{"setting", setting}};
  }
  if (method == "para") return FieldList{{"rank", number}};
  if (method == "lopa" || method == "idpg") return FieldList{{"hidden", number}};
  return FieldList{};
}

class VariantMaker {
 public:
  VariantMaker(const Recipe& recipe, const models::ModelConfig& config, std::string folder)
      : recipe_(recipe), config_(config), folder_(std::move(folder)) {}

  // At the recipe's rank; lopa and idpg at their own default width.
  absl::StatusOr<Variant> AtRank(const std::string& method) const {
    if (method == "lopa") return Make(method, {{"rank", absl::StrCat(recipe_.tenants.rank)}});
    if (method == "idpg") return Make(method, {});
    GRAFT_ASSIGN_OR_RETURN(const FieldList fields,
                           FieldsAt(recipe_, config_, folder_, method, recipe_.tenants.rank));
    return Make(method, fields);
  }

  // The largest that does not train more than `parameters`; at least size 1.
  absl::StatusOr<Variant> AtParameters(const std::string& method, int64_t parameters) const {
    int64_t fits = 1, too_large = 65537;
    while (fits + 1 < too_large) {
      const int64_t size = fits + (too_large - fits) / 2;
      const absl::StatusOr<Variant> variant = AtSize(method, size);
      if (variant.ok() && variant->parameters <= parameters) {
        fits = size;
      } else {
        too_large = size;
      }
    }
    return AtSize(method, fits);
  }

 private:
  absl::StatusOr<Variant> AtSize(const std::string& method, int64_t size) const {
    GRAFT_ASSIGN_OR_RETURN(const FieldList fields,
                           FieldsAt(recipe_, config_, folder_, method, size));
    return Make(method, fields);
  }

  absl::StatusOr<Variant> Make(const std::string& method, const FieldList& fields) const {
    Variant variant;
    variant.name = variant.method = method;
    variant.recipe = recipe_;
    variant.recipe.adapter = {};
    variant.recipe.adapter.method = method;
    variant.recipe.method_fields = fields;
    GRAFT_ASSIGN_OR_RETURN(const AdapterChoice choice, ChooseAdapter(variant.recipe, config_, 0));
    variant.parameters = choice.method->CountParameters(choice.matched);
    return variant;
  }

  const Recipe& recipe_;
  const models::ModelConfig& config_;
  std::string folder_;
};

// Methods whose number of parameters can be chosen without changing what a step computes with.
bool HasChoosableSize(const std::string& method) {
  return method == "fanlora" || method == "para" || method == "lopa" || method == "idpg";
}

bool Asks(const std::vector<std::string>& list, const std::string& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

}  // namespace

absl::StatusOr<std::vector<Variant>> MakeVariants(const Recipe& recipe,
                                                  const models::ModelConfig& config,
                                                  const std::string& folder) {
  const TenantsSection& tenants = recipe.tenants;
  const VariantMaker maker(recipe, config, folder);
  std::vector<Variant> variants(1);
  variants[0].name = "bare";
  variants[0].method = "none";
  variants[0].recipe = recipe;
  GRAFT_ASSIGN_OR_RETURN(const Variant lora, maker.AtRank("lora"));
  for (const std::string& method : tenants.methods) {
    if (Asks(tenants.sizes, "rank") && (method != "lora" || Asks(tenants.kernels, "grouped"))) {
      GRAFT_ASSIGN_OR_RETURN(Variant variant, maker.AtRank(method));
      variants.push_back(std::move(variant));
    }
    if (method == "lora" && Asks(tenants.kernels, "loop")) {
      variants.push_back(lora);
      variants.back().name = "lora-loop";
      variants.back().kernel = TenantKernel::kLoop;
    }
    if (Asks(tenants.sizes, "parameters") && HasChoosableSize(method)) {
      GRAFT_ASSIGN_OR_RETURN(Variant variant, maker.AtParameters(method, lora.parameters));
      variant.name = method + "-equal";
      variant.size = "parameters";
      variants.push_back(std::move(variant));
    }
  }
  if (!recipe.adapter.init_from.empty()) {
    variants.emplace_back();
    variants.back().name = "adapter";
    variants.back().method = recipe.adapter.method;
    variants.back().recipe = recipe;
    GRAFT_ASSIGN_OR_RETURN(const AdapterChoice choice, ChooseAdapter(recipe, config, 0));
    variants.back().parameters = choice.method->CountParameters(choice.matched);
  }
  return variants;
}

absl::StatusOr<StoredAdapter> RandomTenant(const Recipe& recipe, models::Backbone& backbone,
                                           int64_t number, double deviation) {
  at::NoGradGuard no_grad;
  const auto seed = static_cast<uint64_t>(recipe.run.seed * 1'000'003 + number);
  StoredAdapter adapter;
  GRAFT_ASSIGN_OR_RETURN(adapter.choice, ChooseAdapter(recipe, backbone.config(), 0));
  adapters::AttachOptions options;
  options.seed = seed;
  options.num_layers = static_cast<int>(backbone.config().num_layers);
  options.vocab_size = backbone.config().vocab_size;
  options.word_embeddings = [&backbone](const std::vector<int64_t>& ids) {
    return backbone.WordEmbeddings(ids);
  };
  GRAFT_ASSIGN_OR_RETURN(const adapters::Attachment attachment,
                         adapter.choice.method->Attach(adapter.choice.matched, options));
  at::Generator generator = at::detail::createCPUGenerator(seed);
  for (const adapters::NamedParameter& parameter : attachment.parameters) {
    const torch::Tensor noise = at::randn(parameter.value.sizes(), generator, at::kFloat);
    adapter.tensors.emplace_back(parameter.name, parameter.value.detach().add(noise, deviation));
  }
  return adapter;
}

}  // namespace graft::trainer
