#include "models/role.h"

namespace graft::models {
namespace {

struct RoleRow {
  Role role;
  const char* name;
};

constexpr RoleRow kRows[] = {
    {Role::kAttnQ, "attn.q"},       {Role::kAttnK, "attn.k"},     {Role::kAttnV, "attn.v"},
    {Role::kAttnO, "attn.o"},       {Role::kFfnGate, "ffn.gate"}, {Role::kFfnUp, "ffn.up"},
    {Role::kFfnDown, "ffn.down"},   {Role::kCrossQ, "cross.q"},   {Role::kCrossK, "cross.k"},
    {Role::kCrossV, "cross.v"},     {Role::kCrossO, "cross.o"},   {Role::kEmbed, "embed"},
    {Role::kLayerIn, "layer.in"},   {Role::kAttnOut, "attn.out"}, {Role::kFfnOut, "ffn.out"},
    {Role::kLayerOut, "layer.out"}, {Role::kHead, "head"}};

}  // namespace

const char* RoleName(Role role) {
  for (const RoleRow& row : kRows) {
    if (row.role == role) return row.name;
  }
  return "unknown";
}

std::optional<Role> ParseRole(const std::string& name) {
  for (const RoleRow& row : kRows) {
    if (name == row.name) return row.role;
  }
  return std::nullopt;
}

bool IsLinear(Role role) { return role <= Role::kCrossO; }

const std::vector<Role>& AllRoles() {
  static const std::vector<Role>* const roles = [] {
    auto* list = new std::vector<Role>();
    for (const RoleRow& row : kRows) list->push_back(row.role);
    return list;
  }();
  return *roles;
}

}  // namespace graft::models
