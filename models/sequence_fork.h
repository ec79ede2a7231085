// What a step of a beam search does to the running sequences: each beam goes on from a beam of the
// step before. Used by everything that keeps something per sequence while it generates: key-value
// caches, and what methods keep in SequenceStates. No LibTorch.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace graft::models {

struct SequenceFork {
  int64_t parent = 0, child = 0;
};

// states[child] becomes what states[parent] was, for all forks at once; a parent that is no child
// is gone. The last child of a parent takes its state over, the others get copy(state). A parent
// without a state leaves its children without one.
template <typename State, typename Copy>
void ForkSequences(std::map<int64_t, State>& states, const std::vector<SequenceFork>& forks,
                   const Copy& copy) {
  std::map<int64_t, std::pair<State, int>> parents;  // with the children still to come
  for (const SequenceFork& fork : forks) {
    const auto held = states.find(fork.parent);
    if (held != states.end()) {
      parents.emplace(fork.parent, std::pair(std::move(held->second), 0));
      states.erase(held);
    }
    const auto parent = parents.find(fork.parent);
    if (parent != parents.end()) ++parent->second.second;
  }
  for (const SequenceFork& fork : forks) {
    const auto found = parents.find(fork.parent);
    if (found == parents.end()) continue;
    auto& [state, left] = found->second;
    --left;
    states.insert_or_assign(fork.child, left == 0 ? std::move(state) : copy(state));
  }
}

}  // namespace graft::models
