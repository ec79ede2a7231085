// Site lists without a model, for the tests of methods and of adapter folders.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/role.h"

namespace graft::adapters {

// Sites of a Llama-shaped model, as models::ListSites gives them.
inline std::vector<models::SiteSpec> LlamaSites(int layers, int64_t d, int64_t dkv, int64_t f) {
  using models::Role;
  std::vector<models::SiteSpec> sites = {
      {{layers, Role::kEmbed}, "model.embed_tokens", d, d, false}};
  for (int i = 0; i < layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i);
    const auto add = [&](Role role, const std::string& module, int64_t in, int64_t out) {
      sites.push_back({{i, role}, layer + module, in, out, false});
    };
    add(Role::kAttnQ, ".self_attn.q_proj", d, d);
    add(Role::kAttnK, ".self_attn.k_proj", d, dkv);
    add(Role::kAttnV, ".self_attn.v_proj", d, dkv);
    add(Role::kAttnO, ".self_attn.o_proj", d, d);
    add(Role::kFfnGate, ".mlp.gate_proj", d, f);
    add(Role::kFfnUp, ".mlp.up_proj", d, f);
    add(Role::kFfnDown, ".mlp.down_proj", f, d);
    add(Role::kLayerIn, "", d, d);
    add(Role::kAttnOut, ".self_attn.o_proj", d, d);
    add(Role::kFfnOut, ".mlp.down_proj", d, d);
    add(Role::kLayerOut, "", d, d);
  }
  return sites;
}

}  // namespace graft::adapters
