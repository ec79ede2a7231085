// The scored adapter as a folder, and what is worked out from its tensors alone. Rank 0 only.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "adapters/adapter.h"
#include "adapters/importance_file.h"
#include "trainer/scoring/score_plan.h"

namespace graft::trainer {

struct ScoredAdapter {
  // sha256 over names, shapes and hash64 of the tensors and over adapter_config.json without what
  // says where and by whom it was made.
  std::string fingerprint;
  std::vector<adapters::LowRankEdit> edits;          // of each module
  std::optional<adapters::ReferenceSize> reference;  // none: ranks or alphas differ
};

// Kind input as of sharding::FolderParameters; kind recipe when `method` is no LoRA.
absl::StatusOr<ScoredAdapter> ReadScoredAdapter(const std::string& folder,
                                                const adapters::Method& method,
                                                const std::vector<models::SiteSpec>& matched,
                                                const std::vector<models::SiteSpec>& modules);

// norm(s B A)_F^2 = s^2 tr((B^T B)(A A^T)), in float64; `modules` as ScoredAdapter::edits.
void ScoreMagnitude(const ScoredAdapter& adapter, std::vector<adapters::ModuleScore>* modules);

// per_sample.safetensors in `folder`: sample_ids, trained_tokens (int64, N) and by kind of
// measurement one float64 tensor (modules, N): loo, keep_one, taylor, or lora_drop.edits and
// lora_drop.outputs; modules in the order of importance.json. Kind io.
absl::Status WriteSampleValues(const std::string& folder, const ScoreTask& task,
                               const Measured& measured, const std::vector<int64_t>& sample_ids);

}  // namespace graft::trainer
