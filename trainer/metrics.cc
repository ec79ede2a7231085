#include "trainer/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::trainer {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr int64_t kMaxBytes = int64_t{1} << 32;

absl::Status Failed(const std::string& what, const std::string& path) {
  return IoError(absl::StrCat(path, ": ", what, " failed: ", std::strerror(errno)));
}

absl::Status WriteAll(int descriptor, const std::string& text, const std::string& path) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t written = ::write(descriptor, text.data() + done, text.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Failed("write", path);
    done += static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

OrderedJson LayoutJson(const LayoutRecord& layout) {
  return {{"data", layout.data},         {"pipeline", layout.pipeline},
          {"schedule", layout.schedule}, {"micro_batch", layout.micro_batch},
          {"device", layout.device},     {"backend", layout.backend},
          {"threads", layout.threads}};
}

// False for a torn line and for a record that lies after `finished_steps`.
bool Keeps(const std::string& line, int64_t finished_steps) {
  const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object()) return false;
  const auto step = record.find("step");
  return step == record.end() || !step->is_number() || step->get<int64_t>() <= finished_steps;
}

std::string KeptLines(const std::string& text, int64_t finished_steps) {
  std::istringstream lines(text);
  std::string kept;
  for (std::string line; std::getline(lines, line);) {
    if (Keeps(line, finished_steps)) absl::StrAppend(&kept, line, "\n");
  }
  return kept;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsLog>> MetricsLog::Open(const std::string& path,
                                                             int64_t finished_steps) {
  std::string kept;
  if (PathExists(path)) {
    GRAFT_ASSIGN_OR_RETURN(const std::string old, ReadFile(path, kMaxBytes));
    kept = KeptLines(old, finished_steps);
  }
  GRAFT_RETURN_IF_ERROR(AtomicWriteFile(path, kept));
  UniqueFd file(::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW));
  if (!file.valid()) return Failed("open", path);
  return std::unique_ptr<MetricsLog>(new MetricsLog(path, std::move(file)));
}

absl::Status MetricsLog::Append(const std::string& line) {
  return WriteAll(file_.get(), line + "\n", path_);
}

absl::Status MetricsLog::Sync() {
  return ::fsync(file_.get()) == 0 ? absl::OkStatus() : Failed("fsync", path_);
}

absl::Status MetricsLog::Write(const RunRecord& record) {
  OrderedJson versions = OrderedJson::object();
  for (const auto& [name, version] : record.versions) versions[name] = version;
  OrderedJson stages = OrderedJson::array();
  for (const StageRecord& stage : record.stages) {
    stages.push_back({{"stage", stage.stage},
                      {"first_layer", stage.first_layer},
                      {"end_layer", stage.end_layer},
                      {"bytes", stage.bytes},
                      {"predicted_memory_bytes", stage.predicted_memory_bytes}});
    if (stage.gathered_bytes > 0) stages.back()["gathered_bytes"] = stage.gathered_bytes;
  }
  OrderedJson json = {{"kind", "run"},
                      {"schema", 1},
                      {"versions", versions},
                      {"layout", LayoutJson(record.layout)},
                      {"trainable_parameters", record.trainable_parameters},
                      {"adapter_parameters", record.trainable_parameters - record.head_parameters -
                                                 record.encoder_parameters},
                      {"head_parameters", record.head_parameters},
                      {"encoder_parameters", record.encoder_parameters},
                      {"total_parameters", record.total_parameters},
                      {"predicted_memory_bytes", record.predicted_memory_bytes},
                      {"stages", stages}};
  if (const QuantizationRecord& quantized = record.quantization; quantized.matrices > 0) {
    json["quantization"] = {{"kind", quantized.kind},
                            {"matrices", quantized.matrices},
                            {"mean_error", quantized.mean_error},
                            {"largest_error", quantized.largest_error},
                            {"largest_error_matrix", quantized.largest_error_matrix}};
  }
  return Append(json.dump());
}

absl::Status MetricsLog::Write(const TrainRecord& record) {
  // A non-finite loss or norm becomes null: JSON has no NaN.
  OrderedJson json = {{"kind", "train"},
                      {"step", record.step},
                      {"loss", record.loss},
                      {"grad_norm", record.grad_norm},
                      {"lr", record.lr},
                      {"samples", record.samples},
                      {"tokens", record.tokens},
                      {"trained_tokens", record.trained_tokens},
                      {"step_seconds", record.step_seconds},
                      {"tokens_per_second", record.tokens_per_second},
                      {"peak_memory_bytes", record.peak_memory_bytes},
                      {"bubble_fraction", record.bubble_fraction},
                      {"communication_seconds", record.communication_seconds},
                      {"model_flops_per_second", record.model_flops_per_second},
                      {"hardware_flops_per_second", record.hardware_flops_per_second}};
  if (record.peak_flops > 0) {
    json["peft_mfu"] = record.model_flops_per_second / record.peak_flops;
    json["hardware_utilization"] = record.hardware_flops_per_second / record.peak_flops;
  }
  if (record.stage_peak_memory_bytes.size() > 1)
    json["stage_peak_memory_bytes"] = record.stage_peak_memory_bytes;
  if (record.received_weight_bytes > 0)
    json["received_weight_bytes"] = record.received_weight_bytes;
  if (record.skipped) json["skipped"] = true;
  return Append(json.dump());
}

absl::Status MetricsLog::Write(const EvalRecord& record) {
  OrderedJson json = {{"kind", "eval"}, {"step", record.step}, {"loss", record.loss}};
  for (const auto& [name, value] : record.metrics) json[name] = value;
  return Append(json.dump());
}

absl::Status MetricsLog::Write(const CheckpointRecord& record) {
  return Append(OrderedJson{{"kind", "checkpoint"},
                            {"step", record.step},
                            {"seconds", record.seconds},
                            {"bytes", record.bytes},
                            {"stall_seconds", record.stall_seconds}}
                    .dump());
}

absl::Status MetricsLog::Write(const ResumeRecord& record) {
  return Append(OrderedJson{{"kind", "resume"},
                            {"step", record.step},
                            {"from", record.from},
                            {"layout", LayoutJson(record.layout)}}
                    .dump());
}

}  // namespace graft::trainer
