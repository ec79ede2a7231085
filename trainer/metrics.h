// metrics.jsonl of a run (interfaces.md 6): one JSON object a line, `kind` first, written by rank 0
// only. Steps never repeat in the file: a resumed run first cuts what lies after the checkpoint
// that it started from. What the numbers mean is decided by who fills the records.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/file.h"

namespace graft::trainer {

// The layout that a run has, as a record shows it.
struct LayoutRecord {
  int data = 1;
  int pipeline = 1;
  std::string schedule;
  std::string device;
  std::string backend;
  int threads = 1;
  int64_t micro_batch = 1;
};

struct StageRecord {
  int stage = 0;
  int first_layer = 0;  // [first_layer, end_layer)
  int end_layer = 0;
  int64_t bytes = 0;           // of frozen weights
  int64_t gathered_bytes = 0;  // shard_weights: of the layers that are whole at a time, beside them
  int64_t predicted_memory_bytes = 0;  // of a rank of the stage, as `graft plan` computes it
};

// Of the whole model; no matrices: model.quantize is none.
struct QuantizationRecord {
  std::string kind;
  int64_t matrices = 0;
  double mean_error = 0, largest_error = 0;  // ||W - W~|| / ||W||
  std::string largest_error_matrix;
};

struct RunRecord {
  std::vector<std::pair<std::string, std::string>> versions;  // name, version
  LayoutRecord layout;
  int64_t trainable_parameters = 0;
  int64_t head_parameters = 0;     // of those, in the task head
  int64_t encoder_parameters = 0;  // of those, in a prompt encoder
  int64_t total_parameters = 0;
  int64_t predicted_memory_bytes = 0;  // of the largest rank
  std::vector<StageRecord> stages;
  QuantizationRecord quantization;
};

struct TrainRecord {
  int64_t step = 0;      // from 1
  double loss = 0;       // nats per trained token of the global batch
  double grad_norm = 0;  // before clipping
  double lr = 0;
  int64_t samples = 0;
  int64_t tokens = 0;  // whole job
  int64_t trained_tokens = 0;
  double step_seconds = 0;
  double tokens_per_second = 0;
  int64_t peak_memory_bytes = 0;                 // largest rank
  std::vector<int64_t> stage_peak_memory_bytes;  // of each stage's; written only of several stages
  double bubble_fraction = 0;
  double communication_seconds = 0;      // largest rank
  int64_t received_weight_bytes = 0;     // shard_weights: by rank 0; written only when above 0
  double model_flops_per_second = 0;     // whole job, what the step has to compute (cost_model.h)
  double hardware_flops_per_second = 0;  // with what `model.recompute` computes twice
  double peak_flops = 0;                 // of the whole job; 0 = unknown, no shares of it
  bool skipped = false;                  // non-finite: no update; written only when true
};

struct EvalRecord {
  int64_t step = 0;
  double loss = 0;
  std::vector<std::pair<std::string, double>> metrics;
};

struct CheckpointRecord {
  int64_t step = 0;
  double seconds = 0;  // from the step boundary to the commit
  int64_t bytes = 0;
  double stall_seconds = 0;  // of these the training stood still
};

struct ResumeRecord {
  int64_t step = 0;  // finished steps
  std::string from;  // the checkpoint folder's name
  LayoutRecord layout;
};

class MetricsLog {
 public:
  // Opens `path` for appending after cutting it to records with step <= `finished_steps` (records
  // without a step stay; a torn last line goes). The cut is a new file that replaces the old one by
  // rename. Error kind io.
  static absl::StatusOr<std::unique_ptr<MetricsLog>> Open(const std::string& path,
                                                          int64_t finished_steps);

  // Each appends one line and hands it to the system. Error kind io.
  absl::Status Write(const RunRecord& record);
  absl::Status Write(const TrainRecord& record);
  absl::Status Write(const EvalRecord& record);
  absl::Status Write(const CheckpointRecord& record);
  absl::Status Write(const ResumeRecord& record);
  // To disk; a checkpoint's commit needs it.
  absl::Status Sync();

 private:
  MetricsLog(std::string path, UniqueFd file) : path_(std::move(path)), file_(std::move(file)) {}
  absl::Status Append(const std::string& line);
  std::string path_;
  UniqueFd file_;
};

}  // namespace graft::trainer
