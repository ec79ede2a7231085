#include "trainer/coordinator/simulation.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <queue>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::trainer {
namespace {

// How often a worker without an item looks for messages.
constexpr double kIdleSeconds = 0.25;
constexpr int kCoordinator = -1;

class Simulation;

// One end: what was sent goes through the network, what has arrived waits here.
class SimulatedTransport : public Transport {
 public:
  SimulatedTransport(Simulation* simulation, int owner) : simulation_(simulation), owner_(owner) {}
  void Send(const Message& message) override;
  std::optional<Message> Receive() override {
    if (inbox_.empty()) return std::nullopt;
    Message message = std::move(inbox_.front());
    inbox_.pop_front();
    return message;
  }
  void Deliver(Message message) { inbox_.push_back(std::move(message)); }
  void Clear() { inbox_.clear(); }

 private:
  Simulation* const simulation_;
  const int owner_;
  std::deque<Message> inbox_;
};

struct Worker {
  SimulatedWorker facts;
  std::unique_ptr<SimulatedTransport> transport;
  std::unique_ptr<WorkerClient> client;  // null while away or dead
  int64_t start = 0;
  std::optional<WorkerClient::Work> work;
  int left = 0;  // micro-batches
  double stalled_until = 0;
  int64_t wakes = 0;  // number of the wake that counts: older ones are void
};

struct Event {
  double at;
  int64_t order;
  std::function<void()> act;
  bool operator>(const Event& other) const {
    return at != other.at ? at > other.at : order > other.order;
  }
};

class Simulation {
 public:
  explicit Simulation(const SimulationOptions& options);
  SimulationReport Run();

  double now() const { return now_; }
  void Carry(const Message& message, bool to_coordinator);

 private:
  void After(double seconds, std::function<void()> act) {
    events_.push({now_ + seconds, next_order_++, std::move(act)});
  }
  double Uniform() { return std::uniform_real_distribution<double>(0, 1)(random_); }
  void StartCoordinator();
  void LookCoordinator();
  void StartWorker(int number);
  void WakeAfter(int number, double seconds);
  void Wake(int number, int64_t wake);
  void EndMicroBatch(int number);
  void Suffer(int number, const SimulatedFault& fault);
  void Deliver(const Message& message, bool to_coordinator);

  const SimulationOptions& options_;
  std::mt19937_64 random_;
  double now_ = 0;
  int64_t next_order_ = 0;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  SimulatedTransport coordinator_transport_;
  MemoryLog memory_log_;
  std::unique_ptr<ResultLog> opened_log_;
  std::unique_ptr<Coordinator> coordinator_;  // null while it is down
  std::vector<Worker> workers_;
  SimulationReport report_;
  bool crash_due_ = false;
  bool ended_ = false;
};

void SimulatedTransport::Send(const Message& message) {
  simulation_->Carry(message, owner_ != kCoordinator);
}

Simulation::Simulation(const SimulationOptions& options)
    : options_(options), random_(options.seed), coordinator_transport_(this, kCoordinator) {
  for (const WorkItem& item : options_.items) report_.total_cost += item.cost;
  workers_.resize(options_.workers.size());
  StartCoordinator();
  LookCoordinator();
  for (const double at : options_.crashes) {
    After(at, [this] { crash_due_ = true; });
  }
  for (int number = 0; number < static_cast<int>(workers_.size()); ++number) {
    Worker& worker = workers_[static_cast<size_t>(number)];
    worker.facts = options_.workers[static_cast<size_t>(number)];
    StartWorker(number);
    for (const SimulatedFault& fault : worker.facts.faults) {
      After(fault.at, [this, number, fault] { Suffer(number, fault); });
    }
  }
}

void Simulation::Carry(const Message& message, bool to_coordinator) {
  const SimulatedNetwork& network = options_.network;
  ++report_.messages;
  report_.message_bytes += static_cast<int64_t>(EncodeMessage(message).size());
  const int copies = Uniform() < network.loss ? 0 : Uniform() < network.doubling ? 2 : 1;
  for (int copy = 0; copy < copies; ++copy) {
    const double delay =
        network.least_delay + Uniform() * (network.most_delay - network.least_delay);
    After(delay, [this, message, to_coordinator] { Deliver(message, to_coordinator); });
  }
}

void Simulation::Deliver(const Message& message, bool to_coordinator) {
  if (to_coordinator) {
    if (coordinator_ != nullptr) coordinator_transport_.Deliver(message);
    return;
  }
  Worker& worker = workers_[static_cast<size_t>(message.worker)];
  if (worker.client != nullptr) worker.transport->Deliver(message);
}

void Simulation::StartCoordinator() {
  if (options_.open_log) {
    opened_log_.reset();  // gives up its lock
    opened_log_ = options_.open_log();
  }
  ResultLog* const log = opened_log_ != nullptr ? opened_log_.get() : &memory_log_;
  coordinator_transport_.Clear();
  coordinator_ = std::make_unique<Coordinator>(
      options_.items, options_.run_key, options_.coordinator, [this] { return now_; },
      &coordinator_transport_, log);
}

void Simulation::LookCoordinator() {
  try {
    if (coordinator_ == nullptr) StartCoordinator();
    if (std::exchange(crash_due_, false)) throw SimulatedCrash();
    coordinator_->Poll();
    if (options_.at_event) options_.at_event(*coordinator_);
  } catch (const SimulatedCrash&) {
    coordinator_.reset();
    ++report_.restarts;
    return After(options_.restart_seconds, [this] { LookCoordinator(); });
  }
  ended_ = coordinator_->finished();
  After(options_.poll_seconds, [this] { LookCoordinator(); });
}

void Simulation::StartWorker(int number) {
  Worker& worker = workers_[static_cast<size_t>(number)];
  worker.transport = std::make_unique<SimulatedTransport>(this, number);
  worker.client = std::make_unique<WorkerClient>(
      number, worker.start++, options_.worker, [this] { return now_; }, worker.transport.get());
  worker.work.reset();
  // They do not all begin in the same instant.
  WakeAfter(number, Uniform() * kIdleSeconds);
}

void Simulation::WakeAfter(int number, double seconds) {
  const int64_t wake = ++workers_[static_cast<size_t>(number)].wakes;
  After(seconds, [this, number, wake] { Wake(number, wake); });
}

void Simulation::Wake(int number, int64_t wake) {
  Worker& worker = workers_[static_cast<size_t>(number)];
  if (worker.client == nullptr || wake != worker.wakes) return;
  if (now_ < worker.stalled_until) return WakeAfter(number, worker.stalled_until - now_);
  if (worker.work.has_value()) EndMicroBatch(number);
  worker.client->Poll();
  if (!worker.work.has_value()) {
    worker.work = worker.client->Begin();
    worker.left = options_.micro_batches;
    if (worker.work.has_value()) worker.client->Poll();
  }
  if (!worker.work.has_value()) return WakeAfter(number, kIdleSeconds);
  const double cost = options_.items[static_cast<size_t>(worker.work->item)].cost;
  WakeAfter(number, cost / worker.facts.speed / options_.micro_batches);
}

void Simulation::EndMicroBatch(int number) {
  Worker& worker = workers_[static_cast<size_t>(number)];
  const WorkItem& item = options_.items[static_cast<size_t>(worker.work->item)];
  worker.client->NoteProgress();
  report_.computed_cost += item.cost / options_.micro_batches;
  report_.busy_seconds += item.cost / options_.micro_batches / worker.facts.speed;
  if (--worker.left > 0) return;
  worker.client->Deliver(worker.work->epoch, options_.compute(item, number));
  worker.work.reset();
}

void Simulation::Suffer(int number, const SimulatedFault& fault) {
  Worker& worker = workers_[static_cast<size_t>(number)];
  if (worker.client == nullptr) return;
  if (fault.kind == SimulatedFault::Kind::kStall) {
    worker.stalled_until = now_ + fault.seconds;
    return;
  }
  worker.client.reset();
  if (fault.kind == SimulatedFault::Kind::kLeave) {
    After(fault.seconds, [this, number] { StartWorker(number); });
  }
}

SimulationReport Simulation::Run() {
  while (!ended_ && now_ < options_.give_up_seconds) {
    Event event = events_.top();
    events_.pop();
    now_ = event.at;
    event.act();
  }
  report_.seconds = now_;
  if (coordinator_ != nullptr) {
    report_.progress = coordinator_->progress();
    report_.results = coordinator_->results();
  }
  report_.status = ended_ ? coordinator_->status()
                          : BugError(absl::StrCat("the run hung: ", report_.progress.done, " of ",
                                                  report_.progress.items, " items"));
  return std::move(report_);
}

}  // namespace

void MemoryLog::Append(const std::string& id, int worker, const std::string& result) {
  results_[id] = {worker, result};
  dirty_ = true;
}

absl::Status MemoryLog::Sync() {
  dirty_ = false;
  return absl::OkStatus();
}

const std::string* MemoryLog::Find(const std::string& id, int* worker) const {
  const auto found = results_.find(id);
  if (found == results_.end()) return nullptr;
  if (worker != nullptr) *worker = found->second.first;
  return &found->second.second;
}

SimulationReport Simulate(const SimulationOptions& options) { return Simulation(options).Run(); }

}  // namespace graft::trainer
