// sensitivity.json: what a training run with adapter.track_sensitivity knows of its LoRA modules
// (methods.md 16.1, `sensitivity`). Train writes it beside the adapter folder; `graft score` with
// score.method sensitivity reads it from there. Links without LibTorch.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adapters/importance.h"

namespace graft::trainer {

struct Sensitivity {
  std::string adapter_sha256;                  // of adapter_model.safetensors
  std::vector<adapters::ModuleScore> modules;  // sites and scores, by (layer, role)
};

// The file of an adapter folder: sensitivity.json in the folder that holds it.
std::string SensitivityPath(const std::string& adapter_folder);
std::string SensitivityText(const Sensitivity& sensitivity);
// Strict, kind input.
absl::StatusOr<Sensitivity> ReadSensitivity(const std::string& path);

// Sets the scores of `modules` from the file of that adapter folder. Kind input: there is none, it
// belongs to another state of the adapter, or it misses a module.
absl::Status ScoreSensitivity(const std::string& adapter_folder,
                              std::vector<adapters::ModuleScore>* modules);

}  // namespace graft::trainer
