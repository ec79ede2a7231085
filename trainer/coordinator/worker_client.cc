#include "trainer/coordinator/worker_client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::trainer {

WorkerClient::WorkerClient(int worker, int64_t start, const WorkerOptions& options,
                           SecondsClock clock, Transport* transport)
    : worker_(worker),
      start_(start),
      options_(options),
      clock_(std::move(clock)),
      transport_(transport),
      last_heard_(clock_()) {}

WorkerClient::Item* WorkerClient::Find(int64_t epoch) {
  const auto found = std::find_if(items_.begin(), items_.end(),
                                  [epoch](const Item& item) { return item.epoch == epoch; });
  return found == items_.end() ? nullptr : &*found;
}

int WorkerClient::CountBegun() const {
  return static_cast<int>(std::count_if(items_.begin(), items_.end(), [](const Item& item) {
    return item.begun && !item.result.has_value();
  }));
}

HeldItem::State WorkerClient::StateOf(const Item& item) {
  if (item.result.has_value()) return HeldItem::State::kComputed;
  return item.begun ? HeldItem::State::kBegun : HeldItem::State::kWaiting;
}

void WorkerClient::DropWaiting() {
  std::erase_if(items_, [](const Item& item) { return !item.begun; });
}

void WorkerClient::Handle(const Message& message) {
  using Kind = Message::Kind;
  last_heard_ = clock_();
  switch (message.kind) {
    case Kind::kGrant:
      if (!ending_ && seen_.insert(message.epoch).second) {
        items_.push_back({message.item, message.epoch, false, 0, std::nullopt, 0});
      }
      return;
    case Kind::kDrop:
      std::erase_if(items_,
                    [&](const Item& item) { return item.epoch == message.epoch && !item.begun; });
      return;
    case Kind::kAck:
      std::erase_if(items_, [&](const Item& item) { return item.epoch == message.epoch; });
      return;
    case Kind::kAlive:
      return;
    case Kind::kBye:
      finished_ = true;
      return;
    case Kind::kFinish:
      ending_ = true;
      DropWaiting();
      // The coordinator cannot keep results any more.
      if (message.stop)
        std::erase_if(items_, [](const Item& item) { return item.result.has_value(); });
      return;
    default:
      GRAFT_CHECK(false, absl::StrCat("the coordinator sent a message of kind ",
                                      static_cast<int>(message.kind)));
  }
}

void WorkerClient::Poll() {
  if (finished_) return;
  while (!finished_) {
    const std::optional<Message> message = transport_->Receive();
    if (!message.has_value()) break;
    Handle(*message);
  }
  for (Item& item : items_) {
    if (!item.result.has_value() || clock_() - item.sent_at < options_.resend_seconds) continue;
    transport_->Send(*item.result);
    item.sent_at = clock_();
  }
  if (said_bye_) return;
  if (ending_ && items_.empty()) {
    Message bye;
    bye.kind = Message::Kind::kBye;
    bye.worker = worker_;
    transport_->Send(bye);
    said_bye_ = true;
  } else if (ReportIsDue()) {
    Report();
  }
}

bool WorkerClient::ReportIsDue() const {
  const double since = clock_() - reported_at_;
  if (changed_) return true;
  const bool hungry = !ending_ && std::all_of(items_.begin(), items_.end(),
                                              [](const Item& item) { return item.begun; });
  if (hungry && since >= options_.ask_seconds) return true;
  return progress_ > reported_progress_ && since >= options_.renewal_seconds;
}

void WorkerClient::Report() {
  Message report;
  report.kind = Message::Kind::kReport;
  report.worker = worker_;
  report.start = start_;
  report.progress = progress_;
  report.capacity = options_.in_flight + options_.ahead;
  report.stop = stop_;
  for (const Item& item : items_) {
    report.held.push_back({item.epoch, StateOf(item)});
  }
  transport_->Send(report);
  reported_at_ = clock_();
  reported_progress_ = progress_;
  changed_ = false;
}

std::optional<WorkerClient::Work> WorkerClient::Begin() {
  if (ending_ || CountBegun() >= options_.in_flight) return std::nullopt;
  const auto next =
      std::find_if(items_.begin(), items_.end(), [](const Item& item) { return !item.begun; });
  if (next == items_.end()) return std::nullopt;
  next->begun = true;
  next->begun_at = clock_();
  changed_ = true;
  return Work{next->item, next->epoch};
}

void WorkerClient::Deliver(int64_t epoch, absl::StatusOr<std::string> result) {
  Item* const item = Find(epoch);
  GRAFT_CHECK(item != nullptr && item->begun && !item->result.has_value(),
              absl::StrCat("no item of epoch ", epoch, " is under way"));
  Message message;
  message.kind = result.ok() ? Message::Kind::kResult : Message::Kind::kFailure;
  message.worker = worker_;
  message.item = item->item;
  message.epoch = epoch;
  // Items of a pipeline overlap: the time counts from the end of the one before.
  message.seconds = clock_() - std::max(item->begun_at, last_delivered_);
  last_delivered_ = clock_();
  if (result.ok()) {
    message.bytes = *std::move(result);
  } else {
    message.numeric = KindOf(result.status()) == ErrorKind::kNumeric;
    message.bytes = std::string(result.status().message());
  }
  transport_->Send(message);
  item->result = std::move(message);
  item->sent_at = clock_();
  changed_ = true;
}

}  // namespace graft::trainer
