#include "trainer/tenants/device_edits.h"

#include <algorithm>

namespace graft::trainer {

using models::Role;

Role InputOf(Role role) {
  if (role == Role::kAttnK || role == Role::kAttnV) return Role::kAttnQ;
  return role == Role::kFfnUp ? Role::kFfnGate : role;
}

int64_t DeviceEdits::Edit::rank() const {
  int64_t rank = 0;
  for (const LowRank& part : low_rank) rank = std::max(rank, part.hook->a.size(0));
  return rank;
}

void DeviceEdits::AddVectors(const Key& key, bool at_input, int64_t row, const torch::Tensor& scale,
                             const torch::Tensor& bias) {
  std::optional<size_t>& table = at_input ? edits_[key].at_input : edits_[key].at_output;
  if (!table) table = tables_.AddScalesAndBiases((scale.defined() ? scale : bias).numel());
  if (scale.defined()) tables_.SetVector(*table, row, 0, scale);
  if (bias.defined()) tables_.SetVector(*table, row, 1, bias);
}

void DeviceEdits::MakeTables() {
  std::map<Key, std::vector<Edit*>> by_input;
  for (auto& [key, edit] : edits_) {
    if (!edit.low_rank.empty())
      by_input[{{key.site.layer, InputOf(key.site.role)}, key.wave}].push_back(&edit);
  }
  for (const auto& [input, sharing] : by_input) MakeLowRankTables(sharing);
}

// Every site has columns of its own among the inner products, the same ones in all rows; a row of a
// smaller rank leaves some empty.
void DeviceEdits::MakeLowRankTables(const std::vector<Edit*>& sharing) {
  int64_t columns = 0;
  for (Edit* const edit : sharing) {
    edit->first_column = columns;
    columns += edit->rank();
  }
  const int64_t in = sharing.front()->low_rank.front().hook->a.size(1);
  const size_t down = tables_.AddVectors(columns, in);
  for (Edit* const edit : sharing) {
    edit->down = down;
    edit->up = tables_.AddVectors(edit->rank(), edit->low_rank.front().hook->b_transposed.size(1));
    for (const LowRank& part : edit->low_rank) {
      const RowHook& hook = *part.hook;
      tables_.Set(down, part.begin, part.end, edit->first_column, hook.a,
                  static_cast<float>(hook.edit.factor));
      tables_.Set(*edit->up, part.begin, part.end, 0, hook.b_transposed);
    }
  }
}

std::vector<int64_t> DeviceEdits::Layout() const {
  std::vector<int64_t> layout = tables_.Layout();
  for (const auto& [key, edit] : edits_) {
    layout.insert(layout.end(), {key.site.layer, static_cast<int64_t>(key.site.role),
                                 static_cast<int64_t>(key.wave), edit.first_column});
    for (const auto& table : {edit.down, edit.up, edit.at_input, edit.at_output})
      layout.push_back(table ? static_cast<int64_t>(*table) : -1);
  }
  return layout;
}

torch::Tensor DeviceEdits::EditInput(const Key& key, const torch::Tensor& x) const {
  const Edit& edit = edits_.at(key);
  return edit.at_input ? tables_.ScaleAndShift(*edit.at_input, x) : x;
}

torch::Tensor DeviceEdits::EditOutput(const Key& key, const torch::Tensor& x, torch::Tensor y,
                                      models::SiteContext& context) const {
  const Edit& edit = edits_.at(key);
  if (edit.up) {
    // The first of the linears that read x makes the products of all of them.
    const int slot = 2 * static_cast<int>(*edit.down);
    torch::Tensor& products = context.scratch[{this, slot}];
    torch::Tensor& read = context.scratch[{this, slot + 1}];
    if (!read.defined() || !read.is_same(x)) {
      products = tables_.InnerProducts(*edit.down, x);
      read = x;
    }
    tables_.AddUp(*edit.up, products, edit.first_column, y);
  }
  return edit.at_output ? tables_.ScaleAndShift(*edit.at_output, y) : y;
}

}  // namespace graft::trainer
