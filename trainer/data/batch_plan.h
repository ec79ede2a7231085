// Which samples make global batch k, and which part of them a data rank runs in which micro-batch.
// Pure arithmetic over sample numbers: the same on every rank, for every layout, and after every
// resume. Used by the trainer; it reads no data.
//
// A row is what `global_batch`, `micro_batch` and epochs count: one sample, or with packing all the
// samples that share `row_length` tokens. Rows of consecutive epochs follow each other without a
// gap, so a batch may hold the end of one epoch and the begin of the next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace graft::trainer {

struct BatchPlanOptions {
  int64_t num_samples = 0;  // of the data set
  int64_t max_samples = 0;  // only the first ones of the data set; 0 = all
  bool shuffle = false;     // a new order for every epoch, from (seed, epoch) only
  uint64_t seed = 0;
  int64_t steps = 0;   // above 0: wins over epochs
  int64_t epochs = 1;  // steps = ceil(rows of these epochs / global_batch)
  int64_t global_batch = 1;
  int64_t micro_batch = 1;
  int64_t data_ranks = 1;
  int64_t row_length = 0;        // above 0: packing
  std::vector<int64_t> lengths;  // packing: tokens of each sample of the data set
};

class BatchPlan {
 public:
  // Kind recipe when a number does not fit: names the recipe key.
  static absl::StatusOr<BatchPlan> Create(BatchPlanOptions options);

  int64_t num_steps() const { return num_steps_; }
  // Samples of global batch k (from 0; training step k + 1), all data ranks, in order.
  std::vector<int64_t> GlobalBatch(int64_t k);
  // Samples of each micro-batch of a data rank: its contiguous share of the rows, micro_batch rows
  // at a time; the last micro-batch may be smaller. The same number of micro-batches on every rank.
  std::vector<std::vector<int64_t>> MicroBatches(int64_t k, int64_t data_rank);
  int64_t micro_batches_per_step() const;
  // Where the sequence of rows stands after `steps` steps: the epoch (from 0) and the rows of it
  // that are consumed.
  struct Position {
    int64_t epoch = 0, cursor = 0;
  };
  Position After(int64_t steps);
  // SHA-256 over the rows of an epoch, each with its samples: equal = the same packing plan.
  std::string EpochSha256(int64_t epoch);
  // Rows of one epoch (without packing: of every epoch).
  int64_t rows_in_epoch(int64_t epoch);

 private:
  // The rows of one epoch, one after the other.
  struct EpochRows {
    std::vector<int64_t> samples;
    std::vector<std::size_t>
        row_begin;  // packing: of each row, and the end; else row i is sample i
    std::span<const int64_t> Row(int64_t index) const;
  };
  explicit BatchPlan(BatchPlanOptions options) : options_(std::move(options)) {}
  EpochRows MakeEpoch(int64_t epoch) const;
  const EpochRows& Epoch(int64_t epoch);
  Position PositionOf(int64_t row);
  // Row number `row` of the endless sequence of epochs.
  std::span<const int64_t> Row(int64_t row);
  std::vector<int64_t> SamplesOfRows(int64_t begin, int64_t end);

  BatchPlanOptions options_;  // num_samples is after max_samples
  int64_t num_steps_ = 0;
  std::map<int64_t, EpochRows> epochs_;   // at most the ones beside each other that are in use
  std::vector<int64_t> first_row_ = {0};  // packing: of each epoch so far, and the end
};

// Evaluation and scoring run each of `num_samples` samples once: a rank's contiguous share in
// micro-batches. Shares differ by at most one sample and may be empty.
std::vector<std::vector<int64_t>> EvaluationMicroBatches(int64_t num_samples, int64_t micro_batch,
                                                         int64_t data_ranks, int64_t data_rank);

}  // namespace graft::trainer
