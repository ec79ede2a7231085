// What NCCL between GPUs does to the hosts, without either: a transfer that was handed over is a
// kernel that runs until the other rank has handed over its side, and Stall waits, deaf to
// everything else, until no kernel of this rank runs, as a host does that loads a kernel or
// allocates memory. For tests of what is handed over when (comm/transfer_queue.h).
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/status.h"
#include "comm/communicator.h"
#include "comm/transfer_queue.h"

namespace graft::testing {

// The kernels of all ranks. A send and the receive of the same number match, and are then done.
class FakeGpus {
 public:
  using Way = std::pair<int, int>;  // (from, to)

  void HandOver(Way way, bool is_send, const comm::Buffer& data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Kernels& kernels = ways_[way];
    (is_send ? kernels.sends : kernels.receives).push_back(data);
    while (kernels.done < std::min(kernels.sends.size(), kernels.receives.size())) {
      std::memcpy(kernels.receives[kernels.done].data, kernels.sends[kernels.done].data,
                  kernels.sends[kernels.done].bytes());
      ++kernels.done;
    }
    changed_.notify_all();
  }
  bool IsDone(Way way, size_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stuck_) throw StatusError(PeerError("another rank is stuck"));
    return ways_[way].done > number;
  }
  // All-reduce number `number` of the GPUs `group`, from one of them. Sums when all have come.
  void HandOverSum(const std::vector<int>& group, size_t number, int gpu,
                   const comm::Buffer& data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Sum& sum = sums_[{group, number}];
    sum.parts[gpu] = data;
    if (sum.parts.size() < group.size()) return;
    auto* const first = static_cast<float*>(sum.parts.begin()->second.data);
    for (auto part = std::next(sum.parts.begin()); part != sum.parts.end(); ++part) {
      const auto* const addend = static_cast<const float*>(part->second.data);
      for (size_t i = 0; i < data.count; ++i) first[i] += addend[i];
    }
    for (const auto& [other, part] : sum.parts) {
      if (part.data != first) std::memcpy(part.data, first, data.bytes());
    }
    sum.done = true;
    changed_.notify_all();
  }
  bool IsSumDone(const std::vector<int>& group, size_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stuck_) throw StatusError(PeerError("another rank is stuck"));
    return sums_[{group, number}].done;
  }
  // Throws kind peer when a kernel still runs after `limit`: nobody will end it.
  void Stall(int rank, std::chrono::milliseconds limit) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (changed_.wait_for(lock, limit, [&] { return IsIdle(rank); })) return;
    stuck_ = true;
    throw StatusError(PeerError("the ranks wait for each other for ever"));
  }

 private:
  struct Kernels {
    std::vector<comm::Buffer> sends, receives;
    size_t done = 0;
  };
  struct Sum {
    std::map<int, comm::Buffer> parts;  // by GPU
    bool done = false;
  };
  bool IsIdle(int rank) const {
    const auto runs = [rank](const auto& entry) {
      return entry.second.parts.contains(rank) && !entry.second.done;
    };
    return std::none_of(sums_.begin(), sums_.end(), runs) &&
           std::all_of(ways_.begin(), ways_.end(), [&](const auto& entry) {
             const auto& [way, kernels] = entry;
             return (way.first != rank || kernels.sends.size() == kernels.done) &&
                    (way.second != rank || kernels.receives.size() == kernels.done);
           });
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Way, Kernels> ways_;
  std::map<std::pair<std::vector<int>, size_t>, Sum> sums_;  // by group and number
  bool stuck_ = false;
};

// A device group over `host`, whose transfers go through TransferQueue as those over NCCL do.
class FakeDeviceGroup : public comm::Communicator {
 public:
  // `of_ranks`: the GPU of each rank; empty: the rank's number.
  FakeDeviceGroup(comm::Communicator& host, FakeGpus& gpus, bool announces,
                  std::vector<int> of_ranks = {})
      : host_(host), gpus_(gpus), announces_(announces), of_ranks_(std::move(of_ranks)) {}

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  const std::string& name() const override { return host_.name(); }
  const char* backend() const override { return "nccl"; }
  std::unique_ptr<comm::Request> StartSend(comm::Buffer data, int to, int tag) override {
    return Start(data, to, tag, /*is_send=*/true);
  }
  std::unique_ptr<comm::Request> StartRecv(comm::Buffer data, int from, int tag) override {
    return Start(data, from, tag, /*is_send=*/false);
  }
  std::unique_ptr<comm::Request> StartAllReduce(comm::Buffer data, comm::ReduceOp) override {
    gpus_.HandOverSum(of_ranks_, sums_, GpuOf(rank()), data);
    return std::make_unique<SumRequest>(*this, sums_++);
  }
  void AllReduce(comm::Buffer, comm::ReduceOp) override {}
  void Broadcast(comm::Buffer, int) override {}
  void AllGather(comm::Buffer, comm::Buffer) override {}
  void Barrier() override { host_.Barrier(); }
  std::unique_ptr<comm::Communicator> Split(int, int, const std::string&) override { return {}; }
  void Abort(int exit_code) override { host_.Abort(exit_code); }

 private:
  struct Transfer : comm::QueuedTransfer {
    size_t number = 0;
  };
  // The first call connects: it is taken when both sides have made it.
  class Wire : public comm::TransferWire {
   public:
    Wire(FakeGpus& gpus, FakeGpus::Way way, bool is_send)
        : gpus_(gpus), way_(way), is_send_(is_send) {}
    bool IsReady() override { return calls_ != 1 || gpus_.IsDone(way_, 0); }
    void Call(comm::QueuedTransfer& transfer) override {
      static_cast<Transfer&>(transfer).number = calls_++;
      gpus_.HandOver(way_, is_send_, transfer.data);
    }
    void NoteTaken(comm::QueuedTransfer&) override {}
    FakeGpus::Way way() const { return way_; }

   private:
    FakeGpus& gpus_;
    const FakeGpus::Way way_;
    const bool is_send_;
    size_t calls_ = 0;
  };
  struct Channel {
    Channel(FakeDeviceGroup& group, int peer, bool is_send)
        : wire(group.gpus_,
               is_send ? FakeGpus::Way{group.GpuOf(group.rank()), group.GpuOf(peer)}
                       : FakeGpus::Way{group.GpuOf(peer), group.GpuOf(group.rank())},
               is_send),
          queue(group.host_, peer, is_send, group.announces_, wire) {}
    Wire wire;
    comm::TransferQueue queue;
  };
  static void WaitUntilDone(comm::Request& request) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!request.Test()) {
      if (std::chrono::steady_clock::now() > end) throw StatusError(PeerError("no answer"));
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }
  class SumRequest : public comm::Request {
   public:
    SumRequest(FakeDeviceGroup& group, size_t number) : group_(group), number_(number) {}
    bool Test() override { return group_.gpus_.IsSumDone(group_.of_ranks_, number_); }
    void Wait() override { WaitUntilDone(*this); }

   private:
    FakeDeviceGroup& group_;
    const size_t number_;
  };
  class TransferRequest : public comm::Request {
   public:
    TransferRequest(FakeDeviceGroup& group, Channel& channel, std::shared_ptr<Transfer> transfer)
        : group_(group), channel_(channel), transfer_(std::move(transfer)) {}
    bool Test() override {
      group_.Progress();
      return transfer_->handed_over && group_.gpus_.IsDone(channel_.wire.way(), transfer_->number);
    }
    void Wait() override { WaitUntilDone(*this); }

   private:
    FakeDeviceGroup& group_;
    Channel& channel_;
    const std::shared_ptr<Transfer> transfer_;
  };

  std::unique_ptr<comm::Request> Start(comm::Buffer data, int peer, int tag, bool is_send) {
    std::unique_ptr<Channel>& channel = channels_[{peer, is_send}];
    if (channel == nullptr) channel = std::make_unique<Channel>(*this, peer, is_send);
    auto transfer = std::make_shared<Transfer>();
    transfer->data = data;
    transfer->tag = tag;
    channel->queue.Add(transfer);
    do channel->queue.Progress();
    while (!channel->queue.Settled());
    return std::make_unique<TransferRequest>(*this, *channel, std::move(transfer));
  }
  int GpuOf(int rank) const {
    return of_ranks_.empty() ? rank : of_ranks_[static_cast<size_t>(rank)];
  }
  void Progress() {
    for (auto& entry : channels_) entry.second->queue.Progress();
  }

  comm::Communicator& host_;
  FakeGpus& gpus_;
  const bool announces_;
  const std::vector<int> of_ranks_;
  size_t sums_ = 0;  // started
  std::map<std::pair<int, bool>, std::unique_ptr<Channel>> channels_;
};

}  // namespace graft::testing
