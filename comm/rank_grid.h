// Pure arithmetic: which (data, pipeline) coordinates a rank has. world = data x pipeline; the ranks of one pipeline are
// neighbours, because stage boundaries carry far more bytes than the adapter all-reduce. A rank is always the global one.
#pragma once

namespace graft::comm {

struct RankGrid {
  int data = 1;
  int pipeline = 1;
  int world() const { return data * pipeline; }
  int DataRank(int rank) const { return rank / pipeline; }
  int PipelineRank(int rank) const { return rank % pipeline; }
  int Rank(int data_rank, int pipeline_rank) const { return data_rank * pipeline + pipeline_rank; }
};

}  // namespace graft::comm
