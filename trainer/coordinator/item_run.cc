#include "trainer/coordinator/item_run.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "base/logging.h"
#include "base/signals.h"
#include "base/status.h"
#include "comm/agree.h"
#include "comm/wait.h"
#include "trainer/coordinator/bytes.h"
#include "trainer/coordinator/rank_link.h"
#include "trainer/coordinator/transport.h"
#include "trainer/coordinator/worker_client.h"
#include "trainer/progress.h"

namespace graft::trainer {
namespace {

// Of item numbers down the pipeline, and of results back to its first stage. RankLink takes two.
constexpr int kItemTag = 2, kResultTag = 4;
// In the place of an item's number.
constexpr int32_t kNoMoreItems = -1, kStillThere = -2;
// How often a stage that waits hears that the one before it is there.
constexpr double kSignSeconds = 5;
constexpr double kProgressSeconds = 10, kTerminalSeconds = 0.5;
// Waiting for messages has no limit of its own: the watchdog's applies.
constexpr absl::Duration kNoLimit = absl::InfiniteDuration();

std::string EncodeNumber(int32_t item) {
  std::string bytes;
  AppendNumber(&bytes, item);
  return bytes;
}

int32_t DecodeNumber(const std::string& bytes) {
  ByteReader reader(bytes);
  const auto item = reader.Number<int32_t>();
  GRAFT_CHECK(reader.done(), "an item's number has 4 bytes");
  return item;
}

std::string EncodeOutcome(const absl::StatusOr<std::string>& outcome) {
  Message message;
  message.kind = outcome.ok() ? Message::Kind::kResult : Message::Kind::kFailure;
  message.numeric = !outcome.ok() && KindOf(outcome.status()) == ErrorKind::kNumeric;
  message.bytes = outcome.ok() ? *outcome : std::string(outcome.status().message());
  return EncodeMessage(message);
}

absl::StatusOr<std::string> DecodeOutcome(const std::string& bytes) {
  Message message = ValueOrThrow(DecodeMessage(bytes));
  if (message.kind == Message::Kind::kResult) return std::move(message.bytes);
  return message.numeric ? NumericError(message.bytes) : BugError(message.bytes);
}

// What all ranks have: where they are, and the watchdog's phases. An item is a step.
struct Place {
  comm::World& world;
  comm::Communicator& comm;
  comm::RankGrid grid;
  const std::vector<WorkItem>& items;
  ItemRunner& runner;

  int stage() const { return grid.PipelineRank(world.rank()); }
  int replica() const { return grid.DataRank(world.rank()); }
  int first_rank() const { return grid.Rank(replica(), 0); }
  int last_rank() const { return grid.Rank(replica(), grid.pipeline - 1); }
  void BeginStep(int64_t step) const {
    world.heartbeat().Enter(comm::Phase::kStep, step);
    world.recorder().set_step(step);
  }
};

// Stages after the first: compute what they are told to.
void FollowPipeline(const Place& place) {
  const int rank = place.world.rank();
  const bool last = rank == place.last_rank();
  RankLink from(place.comm, rank - 1, kItemTag);
  std::optional<RankLink> next, back;
  if (last) {
    back.emplace(place.comm, place.first_rank(), kResultTag);
  } else {
    next.emplace(place.comm, rank + 1, kItemTag);
  }
  const auto progress = [&] { place.world.heartbeat().Renew(); };
  for (int64_t step = 1;; ++step) {
    place.BeginStep(step);
    int32_t item = kStillThere;
    for (comm::Waiter waiter(kNoLimit); item == kStillThere; waiter.Pause()) {
      const std::optional<std::string> number = from.Receive();
      if (!number.has_value()) continue;
      item = DecodeNumber(*number);
      place.world.heartbeat().Renew();
      if (next.has_value()) next->Send(*number);
    }
    if (item == kNoMoreItems) break;
    const absl::StatusOr<std::string> outcome =
        place.runner.Run(place.items.at(static_cast<size_t>(item)), progress);
    if (last) back->Send(EncodeOutcome(outcome));
  }
  if (next.has_value()) next->Flush();
  if (back.has_value()) back->Flush();
}

// Stage 0 of a replica: its worker, and on rank 0 the coordinator.
class ReplicaHead {
 public:
  ReplicaHead(const Place& place, const std::string& run_key, Journal* journal,
              const CoordinatorOptions& options);
  ItemRunReport Run();
  absl::Status status() const { return coordinator_ ? coordinator_->status() : absl::OkStatus(); }

 private:
  void Tick();
  // Tick while there is nothing to compute: hears that the others are there.
  void TickWaiting();
  void Compute(const WorkerClient::Work& work);
  void TakeResults();
  void EndPipeline();
  void ShowProgress(bool last);
  void LogCosts() const;
  bool finished() const {
    return client_->finished() &&
           (!coordinator_ || coordinator_->num_goodbyes() == place_.grid.data);
  }

  const Place place_;
  std::unique_ptr<Transport> worker_transport_;
  std::unique_ptr<RankCoordinatorTransport> coordinator_transport_;
  std::unique_ptr<WorkerClient> client_;
  std::unique_ptr<Coordinator> coordinator_;
  std::optional<RankLink> next_, back_;  // of a pipeline
  std::deque<int64_t> in_pipeline_;      // epochs, in order
  StatusLine line_;
  double shown_at_ = 0, sign_at_ = 0, heard_ = 0;
  int64_t received_ = 0;
  ItemRunReport report_;
};

ReplicaHead::ReplicaHead(const Place& place, const std::string& run_key, Journal* journal,
                         const CoordinatorOptions& options)
    : place_(place), line_(StderrIsTerminal()) {
  if (place_.world.rank() == 0) {
    auto [coordinators, workers] = MakeLocalTransports();
    worker_transport_ = std::move(workers);
    coordinator_transport_ = std::make_unique<RankCoordinatorTransport>(
        place_.comm, place_.grid.data, place_.grid.pipeline, std::move(coordinators));
    coordinator_ = std::make_unique<Coordinator>(place_.items, run_key, options, &MonotonicSeconds,
                                                 coordinator_transport_.get(), journal);
  } else {
    worker_transport_ = std::make_unique<RankWorkerTransport>(place_.comm);
  }
  WorkerOptions worker;
  worker.in_flight = place_.grid.pipeline;
  worker.renewal_seconds = options.leases.renewal_seconds;
  client_ = std::make_unique<WorkerClient>(place_.replica(), 0, worker, &MonotonicSeconds,
                                           worker_transport_.get());
  if (place_.grid.pipeline == 1) return;
  next_.emplace(place_.comm, place_.world.rank() + 1, kItemTag);
  back_.emplace(place_.comm, place_.last_rank(), kResultTag);
}

void ReplicaHead::Tick() {
  if (StopRequested()) client_->RequestStop();
  TakeResults();
  client_->Poll();
  if (coordinator_ == nullptr) return;
  coordinator_->Poll();
  ShowProgress(false);
}

void ReplicaHead::TickWaiting() {
  Tick();
  const bool others = coordinator_ != nullptr ? coordinator_transport_->num_received() > received_
                                              : client_->last_heard() > heard_;
  if (!others) return;
  received_ = coordinator_ != nullptr ? coordinator_transport_->num_received() : 0;
  heard_ = client_->last_heard();
  place_.world.heartbeat().Renew();
  if (!next_.has_value() || MonotonicSeconds() - sign_at_ < kSignSeconds) return;
  sign_at_ = MonotonicSeconds();
  next_->Send(EncodeNumber(kStillThere));
}

void ReplicaHead::TakeResults() {
  while (!in_pipeline_.empty()) {
    const std::optional<std::string> outcome = back_->Receive();
    if (!outcome.has_value()) return;
    client_->Deliver(in_pipeline_.front(), DecodeOutcome(*outcome));
    in_pipeline_.pop_front();
    place_.world.heartbeat().Renew();
  }
}

void ReplicaHead::Compute(const WorkerClient::Work& work) {
  if (next_.has_value()) {
    next_->Send(EncodeNumber(work.item));
    in_pipeline_.push_back(work.epoch);
  }
  const auto progress = [&] {
    const double begin = MonotonicSeconds();
    place_.world.heartbeat().Renew();
    client_->NoteProgress();
    Tick();
    report_.coordinator_seconds += MonotonicSeconds() - begin;
  };
  absl::StatusOr<std::string> outcome =
      place_.runner.Run(place_.items.at(static_cast<size_t>(work.item)), progress);
  if (!next_.has_value()) client_->Deliver(work.epoch, std::move(outcome));
}

ItemRunReport ReplicaHead::Run() {
  const double begin = MonotonicSeconds();
  int64_t step = 1;
  place_.BeginStep(step);
  double free_since = begin;
  for (comm::Waiter waiter(kNoLimit); !finished();) {
    TickWaiting();
    const std::optional<WorkerClient::Work> work = client_->Begin();
    if (!work.has_value()) {
      waiter.Pause();
      continue;
    }
    report_.waiting_seconds += MonotonicSeconds() - free_since;
    Compute(*work);
    free_since = MonotonicSeconds();
    place_.BeginStep(++step);
    waiter.NoteProgress();
  }
  report_.waiting_seconds += MonotonicSeconds() - free_since;
  EndPipeline();
  report_.seconds = MonotonicSeconds() - begin;
  if (coordinator_ != nullptr) {
    coordinator_transport_->Flush();
    ShowProgress(true);
    report_.progress = coordinator_->progress();
    report_.results = coordinator_->results();
    LogCosts();
  }
  return std::move(report_);
}

void ReplicaHead::LogCosts() const {
  const ItemProgress& progress = report_.progress;
  const double percent = 100 / std::max(report_.seconds, 1e-9);
  LOG(INFO) << absl::StrFormat(
      "%d items computed in %.1f s, %d from the journal, %d computed twice; rank 0: coordinator, "
      "messages and journal %.2f %% of the time, without an item %.2f %%",
      progress.done - progress.from_journal, report_.seconds, progress.from_journal,
      progress.repeated, percent * report_.coordinator_seconds, percent * report_.waiting_seconds);
}

void ReplicaHead::EndPipeline() {
  if (!next_.has_value()) return;
  next_->Send(EncodeNumber(kNoMoreItems));
  next_->Flush();
}

void ReplicaHead::ShowProgress(bool last) {
  const double now = MonotonicSeconds();
  const double every = line_.terminal() ? kTerminalSeconds : kProgressSeconds;
  if (!last && now - shown_at_ < every) return;
  shown_at_ = now;
  line_.Show(ProgressText(coordinator_->progress()));
  if (last) line_.Finish();
}

}  // namespace

std::string ProgressText(const ItemProgress& progress) {
  std::string text = absl::StrFormat("scored %d/%d items", progress.done, progress.items);
  if (progress.from_journal > 0) {
    absl::StrAppendFormat(&text, " (%d from the journal)", progress.from_journal);
  }
  if (progress.replicas_alive > 0) {
    absl::StrAppendFormat(&text, "  %d replica%s", progress.replicas_alive,
                          progress.replicas_alive == 1 ? "" : "s");
  }
  if (progress.quarantined > 0) absl::StrAppendFormat(&text, "  %d failed", progress.quarantined);
  if (progress.eta_seconds >= 0) {
    absl::StrAppend(&text, "  ETA ", DurationText(progress.eta_seconds));
  }
  return text;
}

absl::StatusOr<ItemRunReport> RunWorkItems(comm::World& world, const comm::RankGrid& grid,
                                           const std::string& run_key,
                                           const std::vector<WorkItem>& items, Journal* journal,
                                           ItemRunner& runner, const CoordinatorOptions& options) {
  std::string list;
  for (const WorkItem& item : items) absl::StrAppend(&list, ItemId(run_key, item), "\n");
  const int differs = comm::FirstDifferingRank(world.all(), list);
  if (differs >= 0) {
    return BugError(absl::StrCat("rank ", differs, " has other work items than rank 0"));
  }
  const std::unique_ptr<comm::Communicator> comm = world.all().Split(0, world.rank(), "score");
  const Place place{world, *comm, grid, items, runner};
  ItemRunReport report;
  absl::Status status;
  if (place.stage() == 0) {
    ReplicaHead head(place, run_key, journal, options);
    report = head.Run();
    status = head.status();
  } else {
    FollowPipeline(place);
  }
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(world.all(), status));
  return report;
}

}  // namespace graft::trainer
