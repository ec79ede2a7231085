#include "models/layers/kv_places.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::models {

KvPlaces::KvPlaces(int64_t count) : count_(count) {
  for (int64_t place = 0; place < count; ++place) free_.insert(place);
}

int64_t KvPlaces::Of(int64_t sequence) const {
  const auto found = places_.find(sequence);
  GRAFT_CHECK(found != places_.end(),
              absl::StrCat("sequence ", sequence, " goes on without having begun"));
  return found->second;
}

int64_t KvPlaces::TakeFree() {
  GRAFT_CHECK(!free_.empty(), absl::StrCat("more sequences than the cache's ", count_, " places"));
  return free_.extract(free_.begin()).value();
}

int64_t KvPlaces::Take(int64_t sequence) {
  const auto found = places_.find(sequence);
  return found != places_.end() ? found->second : places_[sequence] = TakeFree();
}

void KvPlaces::Drop(int64_t sequence) {
  const auto found = places_.find(sequence);
  if (found == places_.end()) return;
  free_.insert(found->second);
  places_.erase(found);
}

std::vector<KvPlaces::Copy> KvPlaces::Fork(const std::vector<SequenceFork>& forks) {
  std::set<int64_t> parents;
  for (const SequenceFork& fork : forks) parents.insert(fork.parent);
  // What a child that nobody goes on from held is gone: its place serves the others.
  for (const SequenceFork& fork : forks) {
    if (!parents.contains(fork.child)) Drop(fork.child);
  }
  std::vector<Copy> copies;
  ForkSequences(places_, forks, [&](int64_t place) {
    copies.push_back({place, TakeFree()});
    return copies.back().to;
  });
  return copies;
}

}  // namespace graft::models
