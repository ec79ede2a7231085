// FanLoRA, step (d) (methods.md 16): LoRA where setting.json says which linears of which layers are
// adapted, with which ranks and alphas. A and B start afresh. The folder is a LORA folder that
// names every module, with rank_pattern and alpha_pattern.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "adapters/lora.h"

namespace graft::adapters {

class FanLora : public Lora {
 public:
  const char* name() const override { return "fanlora"; }
  void VisitFields(FieldVisitor& visitor) override;
  // Reads the setting. Kind recipe when adapter.setting is empty; input when it was made for
  // another model, names a role that the model has not, or a rank that does not fit.
  absl::Status Open(const ModelFacts& model) override;
  bool chooses_layers() const override { return true; }
  // The sites that the setting keeps.
  absl::StatusOr<std::vector<models::SiteSpec>> MatchSites(
      const std::vector<models::SiteSpec>& model_sites) const override;
  absl::Status CheckPeftConfig(const nlohmann::json& config,
                               const std::string& origin) const override;
  // Refuses a folder that gives a kept module another rank or alpha than the setting, by r,
  // lora_alpha and the patterns.
  absl::StatusOr<std::vector<std::pair<std::string, torch::Tensor>>> FromFolder(
      const std::vector<models::SiteSpec>& matched, const nlohmann::json& config,
      std::vector<std::pair<std::string, torch::Tensor>> folder,
      const std::string& origin) const override;

 protected:
  Size SizeOf(const models::SiteSpec& site) const override;
  Size CommonSize(const std::vector<models::SiteSpec>& matched) const override;
  LoraPatterns Patterns(const std::vector<models::SiteSpec>& matched) const override;

 private:
  // By module, as the folder has them: a shared module with c kept roles has c times the rank
  // (methods.md 3).
  std::map<std::string, Size> FolderSizes(const std::vector<models::SiteSpec>& matched) const;

  std::string setting_;
  std::map<models::SiteId, Size> kept_;
};

}  // namespace graft::adapters
