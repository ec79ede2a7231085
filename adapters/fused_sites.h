// Sites that share one module (GPT-2's c_attn gives q, k and v): each trains its own part, while
// the adapter folder has one tensor for the module, as huggingface/peft writes it. Used by the
// methods' ToFolder and FromFolder.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "adapters/adapter.h"
#include "adapters/tensor_check.h"

namespace graft::adapters {

// The name of a site's own trained tensor: PeftName(module, suffix), for a shared module with the
// part in between ("...attn.c_attn.q.lora_A.weight").
std::string ParameterName(const models::SiteSpec& site, const std::string& suffix);

// The matched sites of each shared module, in order; sites with a module of their own are left out.
std::vector<std::vector<models::SiteSpec>> FusedGroups(
    const std::vector<models::SiteSpec>& matched);

// A tensor whose first axis is the outputs of a site: a vector, or (out, 1).
struct FusedVector {
  std::string suffix;
  float fill = 0;  // value of the outputs that no matched site has: fixed, not trained
};

// Joins the parts of shared modules into the module's tensor, `fill` elsewhere. Other tensors stay.
NamedTensors PackFused(const std::vector<models::SiteSpec>& matched, const FusedVector& vector,
                       NamedTensors parameters);
// The way back. Error kind input, `origin` first: absent, other number of outputs, or another value
// than `fill` where no site is matched.
absl::StatusOr<NamedTensors> UnpackFused(const std::vector<models::SiteSpec>& matched,
                                         const FusedVector& vector, NamedTensors folder,
                                         const std::string& origin);

// Takes the tensor of that name out of the list; undefined when there is none.
torch::Tensor TakeTensor(const std::string& name, NamedTensors* tensors);

}  // namespace graft::adapters
