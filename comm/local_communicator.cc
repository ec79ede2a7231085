#include "comm/local_communicator.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <set>
#include <thread>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "comm/host_communicator.h"

namespace graft::comm {
namespace {

// Larger sends complete when they are received, as MPI's rendezvous does: code that relies on
// buffering must fail here too.
constexpr std::size_t kEagerBytes = 4096;

// One side of a message. All fields are guarded by LocalJob::mutex.
struct Message {
  char* data = nullptr;  // the sender's memory, the receiver's memory, or `copy`
  std::size_t bytes = 0;
  bool done = false;
  bool corrupt = false;
  std::size_t sent_bytes = 0;  // of the matching send, when done
  std::vector<char> copy;
};

using MessagePtr = std::shared_ptr<Message>;

// Unmatched messages from one rank to another with one tag, in order. At most one of the two lists
// is not empty.
struct Channel {
  std::deque<MessagePtr> sends;
  std::deque<MessagePtr> receives;
};

}  // namespace

// What all ranks of one MakeLocalCommunicators call share.
struct LocalJob {
  using ChannelKey = std::tuple<int, int, int, int>;  // communicator, from, to, tag
  std::mutex mutex;
  std::map<ChannelKey, Channel> channels;
  std::map<std::tuple<int, int, int>, int>
      splits;  // (parent, number of the split, color) -> communicator
  int num_communicators = 1;
  std::set<std::pair<int, int>> gone;  // (communicator, rank) whose object was destroyed
  std::string failure;                 // why the whole job has ended
  std::shared_ptr<LocalFaults> faults;
};

class LocalCommunicator : public HostCommunicator {
 public:
  LocalCommunicator(std::shared_ptr<LocalJob> job, int id, int rank, std::vector<int> world_ranks,
                    std::string name)
      : HostCommunicator(std::move(name)),
        job_(std::move(job)),
        id_(id),
        rank_(rank),
        world_ranks_(std::move(world_ranks)) {}
  ~LocalCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(world_ranks_.size()); }
  const char* backend() const override { return "local"; }
  std::unique_ptr<Communicator> Split(int color, int key, const std::string& name) override;
  void Abort(int exit_code) override;

 protected:
  std::unique_ptr<HostRequest> PostSend(const void* data, std::size_t bytes, int to,
                                        int tag) override;
  std::unique_ptr<HostRequest> PostRecv(void* data, std::size_t bytes, int from, int tag) override;
  bool HasUnclaimed(int from, int tag) override;

 private:
  friend class LocalRequest;
  // The faults of this rank; throws when it was killed.
  void BeginCall(const char* operation);
  LocalFaults::Fate FateOfMessage(int to);
  // Throws when the job has ended. Call with the mutex held.
  void CheckAlive(const char* operation) const;

  const std::shared_ptr<LocalJob> job_;
  const int id_;
  const int rank_;
  const std::vector<int> world_ranks_;
  int num_splits_ = 0;
};

namespace {

void Deliver(const Message& send, Message* receive) {
  receive->sent_bytes = send.bytes;
  const std::size_t bytes = std::min(send.bytes, receive->bytes);
  if (bytes > 0) std::memcpy(receive->data, send.data, bytes);
  if (send.corrupt && bytes > 0) receive->data[bytes / 2] ^= 1;
  receive->done = true;
}

}  // namespace

class LocalRequest : public HostRequest {
 public:
  LocalRequest(LocalCommunicator* comm, bool is_send, int peer, LocalJob::ChannelKey key,
               MessagePtr message)
      : HostRequest(comm, is_send ? "Send" : "Recv", peer),
        local_(comm),
        is_send_(is_send),
        key_(key),
        message_(std::move(message)) {}

  ~LocalRequest() override {
    std::lock_guard<std::mutex> lock(local_->job_->mutex);
    if (message_->done) return;
    Channel& channel = local_->job_->channels[key_];
    std::deque<MessagePtr>& queue = is_send_ ? channel.sends : channel.receives;
    queue.erase(std::remove(queue.begin(), queue.end(), message_), queue.end());
  }

  bool Test() override {
    std::lock_guard<std::mutex> lock(local_->job_->mutex);
    if (!message_->done) {
      local_->CheckAlive(operation());
      CheckPeerIsThere();
      return false;
    }
    GRAFT_CHECK(is_send_ || message_->sent_bytes == message_->bytes,
                Describe(*comm_, operation(),
                         absl::StrCat("rank ", peer(), " sent ", message_->sent_bytes,
                                      " bytes, expected ", message_->bytes)));
    return true;
  }

 private:
  void CheckPeerIsThere() const {
    if (local_->job_->gone.count({local_->id_, peer()}) == 0) return;
    throw StatusError(
        PeerError(Describe(*comm_, operation(), absl::StrCat("rank ", peer(), " has left"))));
  }

  LocalCommunicator* const local_;
  const bool is_send_;
  const LocalJob::ChannelKey key_;
  const MessagePtr message_;
};

LocalCommunicator::~LocalCommunicator() {
  std::lock_guard<std::mutex> lock(job_->mutex);
  job_->gone.insert({id_, rank_});
}

void LocalCommunicator::CheckAlive(const char* operation) const {
  if (job_->failure.empty()) return;
  throw StatusError(PeerError(Describe(*this, operation, job_->failure)));
}

void LocalCommunicator::BeginCall(const char* operation) {
  const int world_rank = world_ranks_[rank_];
  bool killed = false;
  if (job_->faults != nullptr) {
    const absl::Duration delay = job_->faults->DelayOf(world_rank);
    if (delay > absl::ZeroDuration()) std::this_thread::sleep_for(absl::ToChronoNanoseconds(delay));
    killed = job_->faults->TakeKill(world_rank);
  }
  std::lock_guard<std::mutex> lock(job_->mutex);
  if (killed) job_->failure = absl::StrCat("rank ", world_rank, " of the job was killed");
  CheckAlive(operation);
}

LocalFaults::Fate LocalCommunicator::FateOfMessage(int to) {
  if (job_->faults == nullptr) return LocalFaults::Fate::kDeliver;
  return job_->faults->TakeFate(world_ranks_[rank_], world_ranks_[to]);
}

std::unique_ptr<HostRequest> LocalCommunicator::PostSend(const void* data, std::size_t bytes,
                                                         int to, int tag) {
  BeginCall("Send");
  const LocalFaults::Fate fate = FateOfMessage(to);
  const LocalJob::ChannelKey key{id_, rank_, to, tag};
  auto message = std::make_shared<Message>();
  message->data = static_cast<char*>(const_cast<void*>(data));
  message->bytes = bytes;
  message->corrupt = fate == LocalFaults::Fate::kCorrupt;
  std::lock_guard<std::mutex> lock(job_->mutex);
  Channel& channel = job_->channels[key];
  if (fate == LocalFaults::Fate::kDrop) {
    message->done = true;
  } else if (!channel.receives.empty()) {
    Deliver(*message, channel.receives.front().get());
    channel.receives.pop_front();
    message->done = true;
  } else if (bytes <= kEagerBytes) {
    auto buffered = std::make_shared<Message>(*message);
    if (bytes > 0) buffered->copy.assign(message->data, message->data + bytes);
    buffered->data = buffered->copy.data();
    channel.sends.push_back(std::move(buffered));
    message->done = true;
  } else {
    channel.sends.push_back(message);
  }
  return std::make_unique<LocalRequest>(this, true, to, key, std::move(message));
}

std::unique_ptr<HostRequest> LocalCommunicator::PostRecv(void* data, std::size_t bytes, int from,
                                                         int tag) {
  BeginCall("Recv");
  const LocalJob::ChannelKey key{id_, from, rank_, tag};
  auto message = std::make_shared<Message>();
  message->data = static_cast<char*>(data);
  message->bytes = bytes;
  std::lock_guard<std::mutex> lock(job_->mutex);
  Channel& channel = job_->channels[key];
  if (channel.sends.empty()) {
    channel.receives.push_back(message);
  } else {
    Deliver(*channel.sends.front(), message.get());
    channel.sends.front()->done = true;
    channel.sends.pop_front();
  }
  return std::make_unique<LocalRequest>(this, false, from, key, std::move(message));
}

bool LocalCommunicator::HasUnclaimed(int from, int tag) {
  std::lock_guard<std::mutex> lock(job_->mutex);
  const auto channel = job_->channels.find({id_, from, rank_, tag});
  return channel != job_->channels.end() && !channel->second.sends.empty();
}

std::unique_ptr<Communicator> LocalCommunicator::Split(int color, int key,
                                                       const std::string& name) {
  std::vector<int64_t> all(2 * size());
  int64_t mine[2] = {color, key};
  AllGather({mine, 2, DType::kInt64, -1}, {all.data(), all.size(), DType::kInt64, -1});
  std::vector<std::pair<int64_t, int>> members;  // (key, rank here)
  for (int r = 0; r < size(); ++r) {
    if (all[2 * r] == color) members.emplace_back(all[2 * r + 1], r);
  }
  std::sort(members.begin(), members.end());
  std::vector<int> world_ranks;
  int new_rank = 0;
  for (const auto& [unused_key, r] : members) {
    if (r == rank_) new_rank = static_cast<int>(world_ranks.size());
    world_ranks.push_back(world_ranks_[r]);
  }
  int id = 0;
  {
    std::lock_guard<std::mutex> lock(job_->mutex);
    const auto [entry, is_new] = job_->splits.emplace(std::make_tuple(id_, num_splits_, color), 0);
    if (is_new) entry->second = job_->num_communicators++;
    id = entry->second;
  }
  ++num_splits_;
  auto split =
      std::make_unique<LocalCommunicator>(job_, id, new_rank, std::move(world_ranks), name);
  split->InheritFrom(*this, color);
  return split;
}

void LocalCommunicator::Abort(int exit_code) {
  std::lock_guard<std::mutex> lock(job_->mutex);
  if (!job_->failure.empty()) return;
  job_->failure =
      absl::StrCat("rank ", world_ranks_[rank_], " ended the job with exit code ", exit_code);
}

void LocalFaults::Delay(int rank, absl::Duration each_call) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (delays_.size() <= static_cast<std::size_t>(rank)) delays_.resize(rank + 1);
  delays_[rank] = each_call;
}

void LocalFaults::Drop(int from, int to, int nth) {
  std::lock_guard<std::mutex> lock(mutex_);
  messages_.push_back({from, to, nth, Fate::kDrop});
}

void LocalFaults::Corrupt(int from, int to, int nth) {
  std::lock_guard<std::mutex> lock(mutex_);
  messages_.push_back({from, to, nth, Fate::kCorrupt});
}

void LocalFaults::Kill(int rank, int calls_before) {
  std::lock_guard<std::mutex> lock(mutex_);
  kills_.push_back({rank, calls_before});
}

absl::Duration LocalFaults::DelayOf(int rank) {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<std::size_t>(rank) < delays_.size() ? delays_[rank] : absl::ZeroDuration();
}

bool LocalFaults::TakeKill(int rank) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (RankFault& kill : kills_) {
    if (kill.rank == rank && kill.left-- == 0) return true;
  }
  return false;
}

LocalFaults::Fate LocalFaults::TakeFate(int from, int to) {
  std::lock_guard<std::mutex> lock(mutex_);
  Fate fate = Fate::kDeliver;
  for (MessageFault& fault : messages_) {
    if (fault.from != from || fault.to != to) continue;
    if (fault.left-- == 0) fate = fault.fate;
  }
  return fate;
}

std::vector<std::unique_ptr<Communicator>> MakeLocalCommunicators(
    int size, std::shared_ptr<LocalFaults> faults, const std::string& name) {
  GRAFT_CHECK(size >= 1, absl::StrCat("size ", size, ", allowed 1 or more"));
  auto job = std::make_shared<LocalJob>();
  job->faults = std::move(faults);
  std::vector<int> world_ranks(size);
  for (int r = 0; r < size; ++r) world_ranks[r] = r;
  std::vector<std::unique_ptr<Communicator>> all;
  for (int r = 0; r < size; ++r) {
    all.push_back(std::make_unique<LocalCommunicator>(job, 0, r, world_ranks, name));
  }
  return all;
}

}  // namespace graft::comm
