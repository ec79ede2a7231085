#include "base/background_task.h"

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/signals.h"
#include "base/status.h"

namespace graft {
namespace {

absl::Status RunJob(const std::function<absl::Status()>& job) {
  try {
    return job();
  } catch (const StatusError& error) {
    return error.status();
  } catch (const std::exception& error) {
    return BugError(absl::StrCat("background job: ", error.what()));
  }
}

}  // namespace

BackgroundTask::~BackgroundTask() {
  if (active()) thread_.join();
}

void BackgroundTask::Start(std::function<absl::Status()> job) {
  GRAFT_CHECK(!active(), "the result of the previous job was not taken");
  finished_.store(false, std::memory_order_relaxed);
  thread_ = std::thread([this, job = std::move(job)] {
    BlockStopSignals();
    result_ = RunJob(job);
    finished_.store(true, std::memory_order_release);
  });
}

absl::Status BackgroundTask::Take() {
  GRAFT_CHECK(active(), "no job was started");
  thread_.join();
  return std::move(result_);
}

}  // namespace graft
