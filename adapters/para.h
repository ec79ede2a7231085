// PARA (arXiv 2502.01033): in each adapted layer a small generator reads the prompt's hidden states
// and scales Q, V and the FFN's up states at every position, prompt and answer (methods.md 6).
#pragma once

#include <string>
#include <vector>

#include "adapters/adapter.h"

namespace graft::adapters {

class Para : public Method {
 public:
  const char* name() const override { return "para"; }
  int64_t KeptPerRow(const models::SiteSpec& site) const override;
  void VisitFields(FieldVisitor& visitor) override;
  bool reads_prompt() const override { return true; }
  // attn.q, attn.v, ffn.up as `sites` says, and layer.in of the same layers, whose states the
  // generators read.
  absl::StatusOr<std::vector<models::SiteSpec>> MatchSites(
      const std::vector<models::SiteSpec>& model_sites) const override;
  // By layer: down and up as interfaces.md 5 has them, then their biases, pool and activation where
  // they exist. A part of a layer's sites gives that part's numbers.
  std::vector<ParameterSpec> Parameters(
      const std::vector<models::SiteSpec>& matched) const override;
  // W_down ~ N(0, 0.02^2), W_up = 0, biases and pool 0: the frozen model.
  absl::StatusOr<Attachment> Attach(const std::vector<models::SiteSpec>& matched_on_stage,
                                    const AttachOptions& options) const override;
  nlohmann::json PeftConfig(const std::vector<models::SiteSpec>& matched,
                            const PeftContext& context) const override;
  // Refuses another pooling, activation or input; the rest is in the shapes.
  absl::Status CheckPeftConfig(const nlohmann::json& config,
                               const std::string& origin) const override;

 private:
  // The matched sites of one layer; widths are 0 where a site is not among them.
  struct LayerSites {
    std::string module;
    int layer = 0;
    int64_t input = 0;
    std::vector<models::SiteSpec> scaled;  // in the order q, v, up
    int64_t num_scales() const;
  };
  static std::vector<LayerSites> ByLayer(const std::vector<models::SiteSpec>& matched);
  void AttachLayer(const LayerSites& layer, const AttachOptions& options,
                   Attachment* attachment) const;

  std::vector<std::string> sites_ = {"attn.q", "attn.v", "ffn.up"};
  int64_t rank_ = 12;
  std::string pooling_ = "mean";
  std::string activation_ = "gelu";
  std::string input_ = "layer_in";
  bool bias_ = false;
  double dropout_ = 0.0;
};

}  // namespace graft::adapters
