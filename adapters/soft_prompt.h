// What prompt_tuning, idpg and lopa share (methods.md 7): Z stands in the virtual rows in front of
// each sample's text, in place of word embeddings.
//
// Shapes: N rows, D width, K segments that begin here, M virtual rows of each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>
#include <nlohmann/json_fwd.hpp>

#include "absl/status/statusor.h"
#include "adapters/adapter.h"
#include "models/site.h"

namespace graft::adapters {

// The segments that have virtual rows: all of a training micro-batch; in generation those whose
// sequence begins.
std::vector<models::Segment> SegmentsToFill(const models::MicroBatch& batch);

// h (N, D) with the virtual rows of `segments` replaced by z (K, M, D) float32, or (1, M, D) for
// all alike, rounded to h's dtype. Differentiable in z (float32 sums) and h; h is left as it is.
torch::Tensor FillVirtualRows(const torch::Tensor& h, const torch::Tensor& z,
                              const std::vector<models::Segment>& segments);

// The one place of these methods: the `embed` site.
absl::StatusOr<std::vector<models::SiteSpec>> EmbedSite(
    const std::vector<models::SiteSpec>& model_sites);

// First values of M free rows, a leaf that requires grad: N(0, 1), or (`from_vocab`) the word
// embeddings of M token ids drawn uniformly.
torch::Tensor InitialPrompt(const AttachOptions& options, const models::SiteSpec& embed,
                            int64_t num_rows, bool from_vocab);

// `read_at:` the row that an encoder's task head reads: the text's first or the sample's, which is
// a prompt row. A decoder's head reads the last row whatever it says.
struct ReadAtField {
  std::string value = "text";
  void Visit(FieldVisitor& visitor);
  bool is_first() const { return value == "first"; }
  // A folder without the key was trained with `text`. Error kind input when it names the other row.
  absl::Status Check(const nlohmann::json& config, const std::string& origin) const;
};

}  // namespace graft::adapters
