// How many threads a rank computes with: the cores of its affinity mask divided over the ranks of
// the node that share them, unless the recipe says a number (performance.md 4). Called once by
// every command that computes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace graft::trainer {

// Where a rank may run.
struct RankCores {
  std::string host;
  std::vector<int> cores;  // rising
};

// Threads of rank `mine`: `requested` when above 0, else its cores divided by the number of ranks
// on its host whose cores overlap with its own; at least 1. Pure.
int ThreadsOf(const std::vector<RankCores>& ranks, int mine, int64_t requested);
// True when the ranks that share cores with rank `mine` want more threads than there are cores.
bool Oversubscribed(const std::vector<RankCores>& ranks, int mine, int threads);

// Sets LibTorch's intra-op threads of the calling thread (inter-op: 1), warns when cores are
// oversubscribed, returns the number. All ranks of `all` must call.
int SetUpThreads(comm::Communicator& all, int64_t requested);

}  // namespace graft::trainer
