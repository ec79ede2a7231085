#include "trainer/merge_model.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"
#include "models/backbone.h"
#include "models/weights/safetensors.h"

namespace graft::trainer {
namespace {

using models::Role;
using models::SiteSpec;
using models::TensorType;
using models::TensorView;

constexpr int64_t kMaxSideFile = 256 << 20;  // tokenizers are the largest

absl::StatusOr<torch::Dtype> DtypeOf(const TensorView& view, const std::string& name) {
  switch (view.type) {
    case TensorType::kFloat32:
      return torch::kFloat32;
    case TensorType::kBFloat16:
      return torch::kBFloat16;
    case TensorType::kFloat16:
      return torch::kFloat16;
    default:
      return InputError(absl::StrCat("tensor ", name, ": dtype is ",
                                     models::TensorTypeName(view.type),
                                     ", must be F32, BF16 or F16 to be merged"));
  }
}

absl::StatusOr<torch::Tensor> WideCopy(const TensorView& view, const std::string& name) {
  GRAFT_ASSIGN_OR_RETURN(const torch::Dtype dtype, DtypeOf(view, name));
  return at::from_blob(const_cast<uint8_t*>(view.data), view.shape, torch::dtype(dtype))
      .to(torch::kFloat, /*non_blocking=*/false, /*copy=*/true);
}

// The linears that get or lose a bias together, and the key of config.json that says so.
struct BiasGroup {
  const char* key;
  std::vector<Role> roles;
};
const BiasGroup kLlamaGroups[] = {
    {"attention_bias", {Role::kAttnQ, Role::kAttnK, Role::kAttnV, Role::kAttnO}},
    {"mlp_bias", {Role::kFfnGate, Role::kFfnUp, Role::kFfnDown}},
};

class Merger {
 public:
  Merger(std::shared_ptr<models::WeightFolder> weights, const models::ModelConfig& config,
         const adapters::Method& method, const std::vector<SiteSpec>& matched,
         const sharding::NamedTensors& adapter, torch::Dtype trained_dtype)
      : weights_(std::move(weights)), config_(config), method_(method), adapter_(adapter) {
    for (const SiteSpec& site : matched) {
      if (site.id.role == Role::kHead) {
        head_module_ = site.module;
      } else {
        sites_[StoredModule(site.module)].push_back(site);
      }
    }
    const std::string prefix = method.head_prefix();
    for (const auto& [name, value] : adapter) {
      if (method.trains_backbone() && weights_->Has(name)) {
        trained_[weights_->StoredName(name)] = value.to(trained_dtype).contiguous();
      }
      if (!head_module_.empty() && absl::StartsWith(name, prefix + head_module_ + ".")) {
        head_[name.substr(prefix.size())] = value.to(torch::kFloat).contiguous();
      }
    }
  }

  bool has_trained_weights() const { return !trained_.empty(); }
  const std::string& head_module() const { return head_module_; }  // empty: no task head

  // A head that is not trained must stand in the model folder.
  absl::Status CheckHead() const {
    if (head_module_.empty() || !head_.empty()) return absl::OkStatus();
    const std::vector<std::string> names = weights_->names();
    for (const std::string& name : names) {
      if (IsOfHead(name)) return absl::OkStatus();
    }
    return RecipeError(absl::StrCat("export.merge: adapter.head.train is false and ",
                                    weights_->folder(), " has no task head `", head_module_,
                                    "`: there is none to write"));
  }

  // Finds the biases that the merged model has and the model has not.
  absl::Status PlanBiases() {
    for (const auto& [module, sites] : sites_) {
      for (const SiteSpec& site : sites) {
        if (method_.MergeAddsBias(site) && !weights_->Has(module + ".bias"))
          GRAFT_RETURN_IF_ERROR(AddBiasGroup(module));
      }
    }
    return absl::OkStatus();
  }

  // Name -> bytes of every tensor of the merged model.
  absl::StatusOr<std::map<std::string, int64_t>> Sizes() {
    std::map<std::string, int64_t> sizes;
    for (const std::string& name : weights_->names()) {
      if (!head_.empty() && IsOfHead(name)) continue;
      if (const auto found = trained_.find(name); found != trained_.end()) {
        sizes[name] = static_cast<int64_t>(found->second.nbytes());
        continue;
      }
      // What was not trained of such a model is stale: the stored copy of a tied head, other heads.
      if (method_.trains_backbone() && !IsOfHead(name)) continue;
      GRAFT_ASSIGN_OR_RETURN(const TensorView view, weights_->Find(name));
      sizes[name] = view.bytes;
    }
    for (const auto& [name, value] : head_) sizes[name] = static_cast<int64_t>(value.nbytes());
    for (const auto& [bias, weight] : added_biases_) {
      GRAFT_ASSIGN_OR_RETURN(const TensorView view, weights_->Find(weight));
      sizes[bias] = view.shape[0] * models::TensorTypeSize(view.type);
    }
    return sizes;
  }

  absl::Status WriteFile(const std::string& path, const std::vector<std::string>& names) {
    std::vector<torch::Tensor> alive;
    std::vector<models::TensorToWrite> tensors;
    for (const std::string& name : names) {
      GRAFT_ASSIGN_OR_RETURN(const models::TensorToWrite tensor, Merged(name, &alive));
      tensors.push_back(tensor);
    }
    return models::WriteSafetensors(path, std::move(tensors), {{"format", "pt"}});
  }

  const std::set<std::string>& config_keys() const { return config_keys_; }

 private:
  bool IsOfHead(const std::string& name) const {
    return !head_module_.empty() && absl::StartsWith(name, head_module_ + ".");
  }

  absl::Status AddBiasGroup(const std::string& module) {
    const std::vector<SiteSpec> all = models::ListSites(config_);
    const auto role_of = std::find_if(all.begin(), all.end(), [&](const SiteSpec& site) {
      return site.module == module && models::IsLinear(site.id.role);
    });
    for (const BiasGroup& group : kLlamaGroups) {
      const auto in_group = [&](const SiteSpec& site) {
        return std::count(group.roles.begin(), group.roles.end(), site.id.role) > 0;
      };
      if (config_.model_type != "llama" || role_of == all.end() || !in_group(*role_of)) continue;
      config_keys_.insert(group.key);
      for (const SiteSpec& site : all) {
        if (in_group(site) && !weights_->Has(site.module + ".bias"))
          added_biases_[site.module + ".bias"] = site.module + ".weight";
      }
      return absl::OkStatus();
    }
    return RecipeError(absl::StrCat("export.merge: ", method_.name(), " needs a bias at ", module,
                                    ", which a model of type \"", config_.model_type,
                                    "\" cannot have; export the adapter instead"));
  }

  // A module's name in the folder, which may lack the prefix of the base model.
  std::string StoredModule(const std::string& module) const {
    const std::string ending = ".weight";
    const std::string stored = weights_->StoredName(module + ending);
    return stored.substr(0, stored.size() - ending.size());
  }

  // Merges one site into its module's weight, as stored, and bias. A shared module is merged in the
  // rows of the site.
  absl::Status MergeSite(const SiteSpec& site, torch::Tensor* weight, torch::Tensor* bias) {
    torch::Tensor rows = site.fan_in_fan_out ? weight->t() : *weight;
    if (!site.fused()) {
      GRAFT_RETURN_IF_ERROR(method_.Merge(site, adapter_, &rows, bias));
      *weight = site.fan_in_fan_out ? rows.t() : rows;
      return absl::OkStatus();
    }
    const auto part = [&site](const torch::Tensor& whole) {
      return whole.narrow(0, site.fused_offset, site.out_features);
    };
    torch::Tensor merged = part(rows).clone(), shift = part(*bias).clone();
    GRAFT_RETURN_IF_ERROR(method_.Merge(site, adapter_, &merged, &shift));
    part(rows).copy_(merged);
    part(*bias).copy_(shift);
    return absl::OkStatus();
  }

  // The module that a tensor of the merged model belongs to, when the adapter changes it.
  const std::vector<SiteSpec>* SitesOf(const std::string& name) const {
    const size_t dot = name.rfind('.');
    const auto found = sites_.find(name.substr(0, dot));
    if (found == sites_.end()) return nullptr;
    const std::string part = name.substr(dot + 1);
    return part == "weight" || part == "bias" ? &found->second : nullptr;
  }

  absl::StatusOr<models::TensorToWrite> Merged(const std::string& name,
                                               std::vector<torch::Tensor>* alive) {
    if (const auto head = head_.find(name); head != head_.end()) {
      return models::TensorToWrite{name, TensorType::kFloat32, head->second.sizes().vec(),
                                   head->second.data_ptr()};
    }
    if (const auto found = trained_.find(name); found != trained_.end()) {
      const torch::Tensor& value = found->second;
      const bool wide = value.scalar_type() == torch::kFloat32;
      return models::TensorToWrite{name, wide ? TensorType::kFloat32 : TensorType::kBFloat16,
                                   value.sizes().vec(), value.data_ptr()};
    }
    const std::vector<SiteSpec>* sites = SitesOf(name);
    const auto added = added_biases_.find(name);
    if (sites == nullptr && added == added_biases_.end()) {
      GRAFT_ASSIGN_OR_RETURN(const TensorView view, weights_->Find(name));
      return models::TensorToWrite{name, view.type, view.shape, view.data};
    }
    const std::string module = name.substr(0, name.rfind('.'));
    GRAFT_ASSIGN_OR_RETURN(const TensorView weight_view, weights_->Find(module + ".weight"));
    GRAFT_ASSIGN_OR_RETURN(torch::Tensor weight, WideCopy(weight_view, module + ".weight"));
    torch::Tensor bias;
    if (weights_->Has(module + ".bias")) {
      GRAFT_ASSIGN_OR_RETURN(const TensorView bias_view, weights_->Find(module + ".bias"));
      GRAFT_ASSIGN_OR_RETURN(bias, WideCopy(bias_view, module + ".bias"));
    } else if (added != added_biases_.end()) {
      bias = at::zeros({weight_view.shape[0]}, torch::kFloat);
    }
    if (sites != nullptr) {
      for (const SiteSpec& site : *sites) GRAFT_RETURN_IF_ERROR(MergeSite(site, &weight, &bias));
    }
    const bool is_weight = absl::EndsWith(name, ".weight");
    GRAFT_ASSIGN_OR_RETURN(const torch::Dtype dtype, DtypeOf(weight_view, name));
    alive->push_back((is_weight ? weight : bias).to(dtype).contiguous());
    return models::TensorToWrite{name, weight_view.type, alive->back().sizes().vec(),
                                 alive->back().data_ptr()};
  }

  std::shared_ptr<models::WeightFolder> weights_;
  const models::ModelConfig& config_;
  const adapters::Method& method_;
  const sharding::NamedTensors& adapter_;
  std::map<std::string, std::vector<SiteSpec>> sites_;  // by module
  std::map<std::string, std::string> added_biases_;     // bias -> weight of its module
  std::string head_module_;
  std::map<std::string, torch::Tensor> head_;     // trained, by HF name
  std::map<std::string, torch::Tensor> trained_;  // weights of the backbone, by stored name
  std::set<std::string> config_keys_;             // set to true in config.json
};

std::vector<std::vector<std::string>> CutIntoFiles(const std::map<std::string, int64_t>& sizes,
                                                   int64_t limit) {
  std::vector<std::vector<std::string>> files(1);
  int64_t bytes = 0;
  for (const auto& [name, size] : sizes) {
    if (!files.back().empty() && bytes + size > limit) {
      files.emplace_back();
      bytes = 0;
    }
    files.back().push_back(name);
    bytes += size;
  }
  return files;
}

absl::Status WriteWeights(Merger& merger, const std::string& folder, int64_t limit) {
  GRAFT_ASSIGN_OR_RETURN(const auto sizes, merger.Sizes());
  const std::vector<std::vector<std::string>> files = CutIntoFiles(sizes, limit);
  if (files.size() == 1) return merger.WriteFile(JoinPath(folder, "model.safetensors"), files[0]);
  nlohmann::json map = nlohmann::json::object();
  for (size_t i = 0; i < files.size(); ++i) {
    const std::string file = absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, files.size());
    GRAFT_RETURN_IF_ERROR(merger.WriteFile(JoinPath(folder, file), files[i]));
    for (const std::string& name : files[i]) map[name] = file;
  }
  int64_t total = 0;
  for (const auto& [name, size] : sizes) total += size;
  const nlohmann::json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  return AtomicWriteFile(JoinPath(folder, "model.safetensors.index.json"), index.dump(2) + "\n");
}

// Config, tokenizer, templates: every regular file that holds no weights.
bool IsSideFile(const std::string& name) {
  for (const char* const ending :
       {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth",
        ".gguf", ".onnx", ".h5", ".msgpack"}) {
    if (absl::EndsWith(name, ending)) return false;
  }
  return name[0] != '.';
}

// What HF reads of a task head: the class, and how many outputs with which names.
void DescribeHead(const std::vector<std::string>& labels, nlohmann::json* config) {
  const std::vector<std::string> names =
      labels.empty() ? std::vector<std::string>{"LABEL_0"} : labels;
  nlohmann::json by_id = nlohmann::json::object(), by_name = nlohmann::json::object();
  for (size_t i = 0; i < names.size(); ++i) {
    by_id[absl::StrCat(i)] = names[i];
    by_name[names[i]] = i;
  }
  (*config)["id2label"] = by_id;
  (*config)["label2id"] = by_name;
  config->erase("num_labels");  // follows from the names
  (*config)["problem_type"] = labels.empty() ? "regression" : "single_label_classification";
  const nlohmann::json classes = config->value("architectures", nlohmann::json());
  if (!classes.is_array() || classes.empty() || !classes[0].is_string()) return;
  std::string family = classes[0].get<std::string>();
  for (const char* const ending : {"For", "LMHeadModel", "Model"}) {
    family = family.substr(0, family.find(ending));
  }
  (*config)["architectures"] = {family + "ForSequenceClassification"};
}

absl::Status CopySideFiles(const std::string& from, const std::string& to, const Merger& merger,
                           const MergeOptions& options) {
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(from));
  for (const std::string& name : names) {
    if (!IsSideFile(name) || IsFolder(JoinPath(from, name))) continue;
    GRAFT_ASSIGN_OR_RETURN(std::string text, ReadFile(JoinPath(from, name), kMaxSideFile,
                                                      {.follow_links = options.follow_links}));
    const bool has_head = !merger.head_module().empty(), trained = merger.has_trained_weights();
    if (name == "config.json" && (has_head || trained || !merger.config_keys().empty())) {
      GRAFT_ASSIGN_OR_RETURN(nlohmann::json config, ParseJson(text, JoinPath(from, name)));
      for (const std::string& key : merger.config_keys()) config[key] = true;
      if (has_head) DescribeHead(options.labels, &config);
      for (const char* const key : {"dtype", "torch_dtype"}) {
        if (!trained || !config.contains(key)) continue;
        config[key] = options.trained_dtype == torch::kFloat32 ? "float32" : "bfloat16";
      }
      text = config.dump(2) + "\n";
    }
    GRAFT_RETURN_IF_ERROR(AtomicWriteFile(JoinPath(to, name), text));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status MergeModel(const std::string& model_folder, const models::ModelConfig& config,
                        const adapters::Method& method,
                        const std::vector<models::SiteSpec>& matched,
                        const sharding::NamedTensors& adapter, const std::string& to,
                        const MergeOptions& options) {
  if (PathExists(to) && !options.replace)
    return IoError(absl::StrCat("export.to: ", to, " exists, must be a new folder"));
  models::SafetensorsFile::Options reading;
  reading.follow_links = options.follow_links;
  GRAFT_ASSIGN_OR_RETURN(auto weights, models::WeightFolder::Open(model_folder, reading));
  Merger merger(std::move(weights), config, method, matched, adapter, options.trained_dtype);
  GRAFT_RETURN_IF_ERROR(merger.CheckHead());
  GRAFT_RETURN_IF_ERROR(merger.PlanBiases());
  const std::string temporary = JoinPath(FolderOf(to), absl::StrCat(".", Basename(to), ".tmp"));
  GRAFT_RETURN_IF_ERROR(RemoveTree(temporary));
  GRAFT_RETURN_IF_ERROR(MakeDirs(temporary));
  absl::Status status = WriteWeights(merger, temporary, options.shard_bytes);
  if (status.ok()) status = CopySideFiles(model_folder, temporary, merger, options);
  if (status.ok() && options.replace) status = RemoveTree(to);
  if (status.ok()) status = RenamePath(temporary, to);
  if (!status.ok()) RemoveTree(temporary).IgnoreError();
  return status;
}

}  // namespace graft::trainer
