// Names of the places where an adapter can act ("sites"), the same for every architecture (interfaces.md 7, methods.md 1).
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace graft::models {

// Order = the fixed role order used for every tie and file order; values = the site numbers of methods.md 1.2.
enum class Role {
  kAttnQ = 0, kAttnK = 1, kAttnV = 2, kAttnO = 3, kFfnGate = 4, kFfnUp = 5, kFfnDown = 6,
  kCrossQ = 7, kCrossK = 8, kCrossV = 9, kCrossO = 10,
  kEmbed = 16, kLayerIn = 17, kAttnOut = 18, kFfnOut = 19, kLayerOut = 20,
  kHead = 34,
};
inline constexpr int kNumRoles = 21;

const char* RoleName(Role role);                        // "attn.q"
std::optional<Role> ParseRole(const std::string& name);
bool IsLinear(Role role);                               // true for kAttnQ..kCrossO
const std::vector<Role>& AllRoles();                    // in the fixed order

struct SiteId {
  int layer = 0;  // global layer index; embed and head: the number of layers
  Role role = Role::kAttnQ;
  friend bool operator==(const SiteId&, const SiteId&) = default;
  friend auto operator<=>(const SiteId&, const SiteId&) = default;
};

// What a method may know of a site: no tensors, so that parameter counts need no weights.
struct SiteSpec {
  SiteId id;
  std::string module;   // HF module path of the wrapped module, "model.layers.0.self_attn.q_proj"; layer.out / layer.in: the layer
  int64_t in_features = 0;   // hidden-state roles: in = out = width
  int64_t out_features = 0;
  bool fan_in_fan_out = false;  // weight stored (in, out), as GPT-2's Conv1D
  // A projection that several sites share (GPT-2's c_attn): `module` has fused_features outputs, of which this site's are
  // [fused_offset, fused_offset + out_features). 0 = the module is the site's own.
  int64_t fused_features = 0;
  int64_t fused_offset = 0;
  bool fused() const { return fused_features > 0; }
};

}  // namespace graft::models
