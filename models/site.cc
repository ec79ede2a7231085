#include "models/site.h"

namespace graft::models {

void SequenceStates::Put(const void* owner, int64_t sequence, torch::Tensor state) {
  states_[sequence][owner] = std::move(state);
}

torch::Tensor SequenceStates::Get(const void* owner, int64_t sequence) const {
  const auto of_sequence = states_.find(sequence);
  if (of_sequence == states_.end()) return torch::Tensor();
  const auto found = of_sequence->second.find(owner);
  return found == of_sequence->second.end() ? torch::Tensor() : found->second;
}

void SequenceStates::Drop(int64_t sequence) { states_.erase(sequence); }

void SequenceStates::Fork(const std::vector<SequenceFork>& forks) {
  ForkSequences(states_, forks, [](const auto& state) { return state; });
}

void SiteTable::Add(SiteId site, std::shared_ptr<SiteHook> hook) {
  hooks_[site].push_back(std::move(hook));
}

void SiteTable::AddFirst(SiteId site, std::shared_ptr<SiteHook> hook) {
  auto& hooks = hooks_[site];
  hooks.insert(hooks.begin(), std::move(hook));
}

bool SiteTable::HasLayer(int layer) const {
  const auto first = hooks_.lower_bound({layer, Role::kAttnQ});
  return first != hooks_.end() && first->first.layer == layer;
}

const std::vector<std::shared_ptr<SiteHook>>* SiteTable::Find(Role role,
                                                              const SiteContext& context) const {
  const auto found = hooks_.find({context.layer, role});
  return found == hooks_.end() ? nullptr : &found->second;
}

SiteInput SiteTable::EditInput(Role role, SiteInput x, SiteContext& context) const {
  for (const SiteTable* table : {this, context.guests}) {
    const auto* hooks = table == nullptr ? nullptr : table->Find(role, context);
    if (hooks == nullptr) continue;
    for (const auto& hook : *hooks) x = hook->EditInput(x, context);
  }
  return x;
}

torch::Tensor SiteTable::EditOutput(Role role, const SiteInput& x, torch::Tensor y,
                                    SiteContext& context) const {
  for (const SiteTable* table : {this, context.guests}) {
    const auto* hooks = table == nullptr ? nullptr : table->Find(role, context);
    if (hooks == nullptr) continue;
    for (const auto& hook : *hooks) y = hook->EditOutput(x, y, context);
  }
  return y;
}

torch::Tensor SiteTable::EditHidden(Role role, torch::Tensor h, SiteContext& context) const {
  return EditOutput(role, SiteInput{}, std::move(h), context);
}

}  // namespace graft::models
