#include "trainer/scoring/adapter_scores.h"

#include <utility>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/status.h"
#include "base/text.h"
#include "models/weights/safetensors.h"
#include "sharding/adapter_folder.h"

namespace graft::trainer {
namespace {

using adapters::LowRankEdit;
using models::SiteSpec;

std::string FingerprintOf(const sharding::AdapterFolder& folder) {
  nlohmann::json config = folder.config;
  for (const char* key : {"base_model_name_or_path", "peft_version", "revision"}) config.erase(key);
  std::string text = config.dump() + "\n";
  for (const auto& [name, tensor] : folder.tensors) {
    const torch::Tensor values = tensor.contiguous();
    absl::StrAppend(&text, name, " ", absl::StrJoin(values.sizes(), ","), " ",
                    Hex64(Hash64(values.data_ptr(), values.nbytes())), "\n");
  }
  return Sha256Hex(text);
}

std::optional<adapters::ReferenceSize> ReferenceOf(const std::vector<LowRankEdit>& edits) {
  for (const LowRankEdit& edit : edits) {
    if (edit.a.size(0) != edits[0].a.size(0) || edit.alpha != edits[0].alpha) return std::nullopt;
  }
  return adapters::ReferenceSize{edits[0].a.size(0), edits[0].alpha, edits[0].rslora};
}

// Rows of equal length, one after the other.
std::vector<double> Joined(const adapters::SampleValues& values) {
  std::vector<double> all;
  for (const std::vector<double>& row : values) all.insert(all.end(), row.begin(), row.end());
  return all;
}

}  // namespace

absl::StatusOr<ScoredAdapter> ReadScoredAdapter(const std::string& folder,
                                                const adapters::Method& method,
                                                const std::vector<SiteSpec>& matched,
                                                const std::vector<SiteSpec>& modules) {
  GRAFT_ASSIGN_OR_RETURN(const sharding::AdapterFolder read, sharding::ReadAdapterFolder(folder));
  GRAFT_ASSIGN_OR_RETURN(const adapters::NamedTensors parameters,
                         sharding::FolderParameters(read, method, matched));
  ScoredAdapter adapter;
  adapter.fingerprint = FingerprintOf(read);
  for (const SiteSpec& module : modules) {
    GRAFT_ASSIGN_OR_RETURN(LowRankEdit edit, method.LowRankAt(module, parameters));
    adapter.edits.push_back(std::move(edit));
  }
  adapter.reference = ReferenceOf(adapter.edits);
  return adapter;
}

void ScoreMagnitude(const ScoredAdapter& adapter, std::vector<adapters::ModuleScore>* modules) {
  for (size_t m = 0; m < modules->size(); ++m) {
    const LowRankEdit& edit = adapter.edits[m];
    const torch::Tensor a = edit.a.to(at::kDouble), b = edit.b.to(at::kDouble);
    const double square = (at::mm(b.t(), b) * at::mm(a, a.t())).sum().item<double>();
    (*modules)[m].score = edit.scale * edit.scale * square;
  }
}

absl::Status WriteSampleValues(const std::string& folder, const ScoreTask& task,
                               const Measured& measured, const std::vector<int64_t>& sample_ids) {
  const auto samples = static_cast<int64_t>(sample_ids.size());
  const bool is_drop = !measured.second.empty();
  std::vector<std::pair<std::string, std::vector<double>>> rows;
  for (const auto& [name, values] :
       {std::pair<std::string, const adapters::SampleValues&>{"loo", measured.ablation.loo},
        {"keep_one", measured.ablation.keep_one},
        {is_drop ? "lora_drop.edits" : "taylor", measured.first},
        {"lora_drop.outputs", measured.second}}) {
    if (!values.empty()) rows.emplace_back(name, Joined(values));
  }
  using models::TensorType;
  std::vector<models::TensorToWrite> tensors = {
      {"sample_ids", TensorType::kInt64, {samples}, sample_ids.data()},
      {"trained_tokens", TensorType::kInt64, {samples}, task.trained_tokens.data()}};
  for (const auto& [name, values] : rows) {
    tensors.push_back({name,
                       TensorType::kFloat64,
                       {static_cast<int64_t>(task.modules.size()), samples},
                       values.data()});
  }
  return models::WriteSafetensors(JoinPath(folder, "per_sample.safetensors"), tensors, {});
}

}  // namespace graft::trainer
