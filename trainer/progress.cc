#include "trainer/progress.h"

#include <unistd.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/logging.h"

namespace graft::trainer {
std::string DurationText(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole >= 3600)
    return absl::StrFormat("%d:%02d:%02d", whole / 3600, whole / 60 % 60, whole % 60);
  return absl::StrFormat("%d:%02d", whole / 60, whole % 60);
}

std::string ProgressText(const TrainRecord& record, int64_t total_steps, double eta_seconds) {
  std::string text =
      absl::StrFormat("step %d/%d  loss %.4f  %.0f tok/s  ETA %s", record.step, total_steps,
                      record.loss, record.tokens_per_second, DurationText(eta_seconds));
  if (record.peak_flops > 0) {
    absl::StrAppendFormat(&text, "  MFU %.1f %%",
                          100.0 * record.model_flops_per_second / record.peak_flops);
  }
  if (record.skipped) absl::StrAppend(&text, "  skipped: not finite");
  return text;
}

void Progress::Show(const TrainRecord& record) {
  mean_step_seconds_ = mean_step_seconds_ == 0
                           ? record.step_seconds
                           : 0.9 * mean_step_seconds_ + 0.1 * record.step_seconds;
  const double eta = mean_step_seconds_ * static_cast<double>(total_steps_ - record.step);
  const std::string text = ProgressText(record, total_steps_, eta);
  if (line_.terminal() || record.step % every_ == 0 || record.step == total_steps_) {
    line_.Show(text);
  }
}

void StatusLine::Show(const std::string& text) {
  if (terminal_) {
    std::fprintf(stderr, "\r%s\033[K", text.c_str());
    std::fflush(stderr);
    open_ = true;
  } else {
    LOG(INFO) << text;
  }
}

void StatusLine::Finish() {
  if (open_) std::fputc('\n', stderr);
  open_ = false;
}

bool StderrIsTerminal() { return ::isatty(STDERR_FILENO) == 1; }

}  // namespace graft::trainer
