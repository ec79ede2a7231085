// Which of the fixed places of a key-value cache each running sequence has: the same in all layers.
// Used by caches with fixed room (attention.h). No LibTorch.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "models/sequence_fork.h"

namespace graft::models {

class KvPlaces {
 public:
  explicit KvPlaces(int64_t count);
  int64_t count() const { return count_; }
  // Of a sequence that has one.
  int64_t Of(int64_t sequence) const;
  // The one that it has, else the lowest that is free; one must be.
  int64_t Take(int64_t sequence);
  void Drop(int64_t sequence);
  // As ForkSequences. What the places `to` then hold must be copied; no place is in both columns,
  // and never more are taken than there are sequences afterwards.
  struct Copy {
    int64_t from = 0, to = 0;
  };
  std::vector<Copy> Fork(const std::vector<SequenceFork>& forks);

 private:
  int64_t TakeFree();
  int64_t count_;
  std::map<int64_t, int64_t> places_;  // by sequence
  std::set<int64_t> free_;
};

}  // namespace graft::models
