#include "trainer/step_trace.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/logging.h"
#include "comm/booking.h"
#include "comm/clock_offset.h"
#include "comm/monotonic.h"
#include "comm/stage_link.h"

namespace graft::trainer {
namespace {

constexpr int kTag = 72;

const char* PassName(sharding::Pass pass) {
  return pass == sharding::Pass::kForward ? "forward" : "backward";
}

bool IsTransfer(const comm::FlightEntry& entry) { return entry.number == 0; }

}  // namespace

StepTrace::StepTrace(comm::World& world, std::string label, int64_t steps)
    : world_(world), wanted_(steps) {
  spans_.rank = world.rank();
  spans_.label = std::move(label);
}

StepTrace::Scope::Scope(StepTrace* trace, const char* name, const char* category)
    : trace_(trace != nullptr && trace->recording_ ? trace : nullptr),
      name_(name),
      category_(category) {
  if (trace_ != nullptr) begin_ns_ = comm::MonotonicNanos();
}

StepTrace::Scope::~Scope() {
  if (trace_ == nullptr) return;
  trace_->spans_.main.push_back({name_, category_, begin_ns_, comm::MonotonicNanos(), {}});
}

void StepTrace::BeginStep(int64_t step) {
  recording_ = std::exchange(warm_, true) && !full();
  if (!recording_) return;
  if (empty()) first_step_ = step;
  last_step_ = step;
  begin_ns_ = comm::MonotonicNanos();
}

void StepTrace::EndStep(const sharding::StepResult& result) {
  if (!recording_) return;
  const int64_t end_ns = comm::MonotonicNanos();
  spans_.main.push_back(
      {absl::StrCat("step ", last_step_), "step", begin_ns_, end_ns, {{"step", last_step_}}});
  AddOps(result);
  const std::vector<comm::FlightGroup> groups = world_.recorder().Groups();
  const std::vector<comm::FlightEntry> entries = world_.recorder().Snapshot();
  for (const comm::FlightEntry& entry : entries) AddCommunication(entry, groups);
  if (!entries.empty() && entries[0].sequence > 1 && entries[0].enqueued_ns > begin_ns_) {
    LOG(WARNING) << "log.trace: step " << last_step_ << " has more than "
                 << comm::FlightRecorder::kEntries
                 << " operations of communicators; the trace lacks the first of them";
  }
  recording_ = false;
  ++recorded_;
}

void StepTrace::AddOps(const sharding::StepResult& result) {
  const auto at = [&result](double seconds) {
    return result.begin_ns + std::llround(seconds * 1e9);
  };
  for (const sharding::OpRecord& record : result.timeline) {
    const sharding::Op& op = record.op;
    spans_.main.push_back(
        {absl::StrCat(PassName(op.pass), " ", op.micro_batch,
                      op.chunk > 0 ? absl::StrCat(" chunk ", op.chunk) : std::string()),
         "compute",
         at(record.begin_seconds),
         at(record.end_seconds),
         {{"micro_batch", op.micro_batch}, {"chunk", op.chunk}}});
  }
}

// A collective is a span of the main thread. A transfer, or an all-reduce that was started, runs
// beside it, from its start to its end; the main thread shows only the time that it waited.
void StepTrace::AddCommunication(const comm::FlightEntry& entry,
                                 const std::vector<comm::FlightGroup>& groups) {
  if (entry.enqueued_ns < begin_ns_ || entry.finished_ns == 0) return;
  const std::string group =
      entry.group >= 0 ? groups[static_cast<size_t>(entry.group)].name : std::string("?");
  const bool beside = std::strcmp(entry.op, comm::kStartedAllReduce) == 0;
  if (!IsTransfer(entry) && !beside) {
    const char* category = std::strcmp(entry.op, "AllReduce") == 0 ? "all-reduce" : "collective";
    spans_.main.push_back({absl::StrCat(entry.op, " ", group),
                           category,
                           entry.enqueued_ns,
                           entry.finished_ns,
                           {{"bytes", entry.bytes}}});
    return;
  }
  if (beside) {
    AddBeside(entry, "all-reduce", "wait for an all-reduce", {{"bytes", entry.bytes}});
    return;
  }
  const bool sends = std::strcmp(entry.op, "Send") == 0;
  AddBeside(entry, sends ? "send" : "receive", sends ? "wait for a send" : "wait for a receive",
            {{"bytes", entry.bytes}, {"peer", entry.peer}, {"micro_batch", entry.micro_batch}});
}

void StepTrace::AddBeside(const comm::FlightEntry& entry, const char* name, const char* waiting,
                          std::vector<std::pair<const char*, int64_t>> arguments) {
  if (entry.waited_ns > 0)
    spans_.main.push_back({waiting, "idle", entry.waited_ns, entry.finished_ns, arguments});
  // A header travels with the tensor that is shown.
  if (IsTransfer(entry) && entry.bytes == sizeof(comm::StageHeader)) return;
  spans_.transfers.push_back(
      {name, name, entry.enqueued_ns, entry.finished_ns, std::move(arguments)});
}

// Rank r > 0: measures its clock together with rank 0, then sends its events on rank 0's clock.
void StepTrace::SendEvents() {
  comm::Communicator& all = world_.all();
  const comm::ClockOffset offset = comm::MeasureClockOffset(all, 0, /*asks=*/true);
  // Rank 0's clock shows `nanos` above this one.
  std::string events = TraceEvents(spans_, -offset.nanos);
  int64_t facts[2] = {offset.error, static_cast<int64_t>(events.size())};
  all.Send({facts, 2, comm::DType::kInt64, -1}, 0, kTag);
  all.Send({events.data(), events.size(), comm::DType::kUint8, -1}, 0, kTag);
}

absl::Status StepTrace::Write(const std::string& folder) {
  const std::string name = absl::StrFormat("steps-%08d-%08d.json", first_step_, last_step_);
  absl::Status status;
  if (world_.rank() > 0) {
    SendEvents();
  } else {
    std::vector<std::string> events = {TraceEvents(spans_, 0)};
    int64_t error_ns = 0;
    comm::Communicator& all = world_.all();
    for (int rank = 1; rank < all.size(); ++rank) {
      comm::MeasureClockOffset(all, rank, /*asks=*/false);
      int64_t facts[2] = {};
      all.Recv({facts, 2, comm::DType::kInt64, -1}, rank, kTag);
      error_ns = std::max(error_ns, facts[0]);
      std::string& text = events.emplace_back(static_cast<size_t>(facts[1]), '\0');
      all.Recv({text.data(), text.size(), comm::DType::kUint8, -1}, rank, kTag);
    }
    status = MakeDirs(folder);
    if (status.ok()) status = AtomicWriteFile(JoinPath(folder, name), TraceFile(events, error_ns));
  }
  return status;
}

}  // namespace graft::trainer
