#include "comm/host_communicator.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "comm/booking.h"
#include "comm/ordered_reduce.h"

namespace graft::comm {
namespace {

enum Tag {
  kExchangeTag = -1,
  kGatherTag = -2,
  kBroadcastTag = -3,
  kBarrierTag = -4,
  kAllGatherTag = -5
};
constexpr struct {
  int tag;
  const char* operation;
} kCollectives[] = {{kExchangeTag, "AllReduce"},
                    {kGatherTag, "AllReduce"},
                    {kBroadcastTag, "Broadcast"},
                    {kBarrierTag, "Barrier"},
                    {kAllGatherTag, "AllGather"}};
// So long without progress before a rank asks itself whether the others are elsewhere.
constexpr double kDoubtSeconds = 1;

// Up to this much scratch per AllReduce a direct exchange is faster than two dependent phases.
constexpr std::size_t kDirectBytes = 256 << 10;
// One rank's slice of a block: large enough to hide the latency, small enough that what just
// arrived is still in cache.
constexpr std::size_t kMaxSliceBytes = 512 << 10;
constexpr std::size_t kMinSliceBytes = 64 << 10;
constexpr std::size_t kBlockBytes = 4 << 20;
constexpr std::size_t kBroadcastBytes = 1 << 20;

std::size_t SliceBytes(int size) {
  return std::clamp(kBlockBytes / static_cast<std::size_t>(size), kMinSliceBytes, kMaxSliceBytes);
}

}  // namespace

// Elements [begin, end) of the buffer on their way through AllReduce.
struct HostCommunicator::Block {
  std::size_t begin = 0;
  std::size_t end = 0;
  char* scratch = nullptr;  // size slots for one slice each
  Requests exchange;
  Requests gather;

  std::size_t SliceBegin(int index, int size) const {
    return begin + (end - begin) * static_cast<std::size_t>(index) / static_cast<std::size_t>(size);
  }
};

void HostRequest::Wait() { comm_->WaitOne(this); }

void HostCommunicator::CheckBuffer(const char* operation, const Buffer& buffer) const {
  GRAFT_CHECK(buffer.device < 0,
              Describe(*this, operation,
                       absl::StrCat("buffer on CUDA device ", buffer.device,
                                    "; this backend takes host memory (the nccl backend moves "
                                    "device memory)")));
}

void HostCommunicator::CheckPeer(const char* operation, int peer) const {
  GRAFT_CHECK(
      peer >= 0 && peer < size(),
      Describe(*this, operation, absl::StrCat("peer ", peer, ", allowed 0 to ", size() - 1)));
}

char* HostCommunicator::Scratch(std::size_t bytes) {
  if (bytes > scratch_bytes_) {
    scratch_.reset(new char[bytes]);
    scratch_bytes_ = bytes;
  }
  return scratch_.get();
}

void HostCommunicator::WaitAll(const char* operation, Waiter* waiter, Requests* requests) {
  BlockedTimer timer(&blocked_seconds_);
  double doubt = waiter->idle_seconds() + kDoubtSeconds;
  std::string elsewhere;
  while (true) {
    std::vector<int> missing;
    bool progress = false;
    for (std::unique_ptr<HostRequest>& request : *requests) {
      if (request == nullptr) continue;
      if (request->Test()) {
        request.reset();
        progress = true;
      } else {
        missing.push_back(request->peer());
      }
    }
    if (missing.empty()) break;
    if (progress) {
      waiter->NoteProgress();
      doubt = kDoubtSeconds;
      elsewhere.clear();
      continue;
    }
    // Messages of one rank come in their order: what it sent before would have been there by now.
    GRAFT_CHECK(elsewhere.empty(),
                Describe(*this, operation,
                         absl::StrCat(elsewhere, ": the ranks call collectives in another order")));
    if (waiter->idle_seconds() >= doubt) {
      elsewhere = OtherCollective(operation, missing);
      doubt = waiter->idle_seconds() + kDoubtSeconds;
    }
    if (!waiter->Pause()) {
      throw StatusError(TimeoutError(*this, operation, missing, waiter->waited_seconds()));
    }
  }
  requests->clear();
}

std::string HostCommunicator::OtherCollective(const char* operation,
                                              const std::vector<int>& peers) {
  for (const int peer : peers) {
    for (const auto& collective : kCollectives) {
      if (std::strcmp(collective.operation, operation) == 0) continue;
      if (!HasUnclaimed(peer, collective.tag)) continue;
      return absl::StrCat("rank ", peer, " is in ", collective.operation);
    }
  }
  return "";
}

void HostCommunicator::WaitOne(HostRequest* request) {
  BlockedTimer timer(&blocked_seconds_);
  Waiter waiter(timeout());
  while (!request->Test()) {
    if (waiter.Pause()) continue;
    throw StatusError(
        TimeoutError(*this, request->operation(), {request->peer()}, waiter.waited_seconds()));
  }
}

std::unique_ptr<Request> HostCommunicator::StartSend(Buffer data, int to, int tag) {
  CheckBuffer("Send", data);
  CheckPeer("Send", to);
  GRAFT_CHECK(tag >= 0 && tag <= kMaxTag, absl::StrCat("tag ", tag, ", allowed 0 to ", kMaxTag));
  return BookTransfer(*this, "Send", data, to, PostSend(data.data, data.bytes(), to, tag));
}

std::unique_ptr<Request> HostCommunicator::StartRecv(Buffer data, int from, int tag) {
  CheckBuffer("Recv", data);
  CheckPeer("Recv", from);
  GRAFT_CHECK(tag >= 0 && tag <= kMaxTag, absl::StrCat("tag ", tag, ", allowed 0 to ", kMaxTag));
  return BookTransfer(*this, "Recv", data, from, PostRecv(data.data, data.bytes(), from, tag));
}

void HostCommunicator::ExchangeAll(const char* operation, int tag, const void* data,
                                   std::size_t bytes, char* scratch) {
  Requests requests;
  for (int step = 1; step < size(); ++step) {
    const int from = (rank() + step) % size();
    requests.push_back(PostRecv(scratch + from * bytes, bytes, from, tag));
  }
  for (int step = 1; step < size(); ++step) {
    requests.push_back(PostSend(data, bytes, (rank() + size() - step) % size(), tag));
  }
  Waiter waiter(timeout());
  WaitAll(operation, &waiter, &requests);
}

void HostCommunicator::AllReduce(Buffer inout, ReduceOp op) {
  CheckBuffer("AllReduce", inout);
  GRAFT_CHECK(IsReducible(inout.type), Describe(*this, "AllReduce",
                                                absl::StrCat("type ", NameOf(inout.type),
                                                             ", allowed float32, float64, int64")));
  if (size() == 1 || inout.count == 0) return;
  const BookedCollective booked(*this, "AllReduce", inout);
  if (inout.bytes() * static_cast<std::size_t>(size()) <= kDirectBytes) {
    DirectAllReduce(inout, op);
  } else {
    BlockedAllReduce(inout, op);
  }
}

void HostCommunicator::DirectAllReduce(Buffer inout, ReduceOp op) {
  char* scratch = Scratch(inout.bytes() * size());
  ExchangeAll("AllReduce", kExchangeTag, inout.data, inout.bytes(), scratch);
  std::vector<void*> parts;
  for (int r = 0; r < size(); ++r) {
    parts.push_back(r == rank() ? inout.data : scratch + r * inout.bytes());
  }
  ReduceInRankOrder(inout.type, op, inout.count, inout.data, parts);
}

void HostCommunicator::BlockedAllReduce(Buffer inout, ReduceOp op) {
  const std::size_t slice = SliceBytes(size());
  const std::size_t block_count = slice / SizeOf(inout.type) * size();
  Block blocks[2];
  blocks[0].scratch = Scratch(2 * slice * size());
  blocks[1].scratch = blocks[0].scratch + slice * size();
  Waiter waiter(timeout());
  const auto start = [&](std::size_t begin, Block* block) {
    block->begin = begin;
    block->end = std::min(begin + block_count, inout.count);
    StartExchange(inout, block);
  };
  start(0, &blocks[0]);
  for (int current = 0;; current = 1 - current) {
    Block& block = blocks[current];
    Block& other = blocks[1 - current];
    const bool last = block.end == inout.count;
    WaitAll("AllReduce", &waiter, &block.exchange);
    if (!last) start(block.end, &other);
    ReduceAndStartGather(inout, op, &block);
    WaitAll("AllReduce", &waiter, &block.gather);
    if (last) return;
  }
}

void HostCommunicator::StartExchange(const Buffer& buffer, Block* block) {
  const std::size_t item = SizeOf(buffer.type);
  char* const data = static_cast<char*>(buffer.data);
  const std::size_t mine =
      block->SliceBegin(rank() + 1, size()) - block->SliceBegin(rank(), size());
  for (int step = 1; step < size() && mine > 0; ++step) {
    const int from = (rank() + step) % size();
    block->exchange.push_back(
        PostRecv(block->scratch + from * mine * item, mine * item, from, kExchangeTag));
  }
  for (int step = 1; step < size(); ++step) {
    const int to = (rank() + size() - step) % size();
    const std::size_t begin = block->SliceBegin(to, size());
    const std::size_t count = block->SliceBegin(to + 1, size()) - begin;
    if (count == 0) continue;
    block->exchange.push_back(PostSend(data + begin * item, count * item, to, kExchangeTag));
  }
}

void HostCommunicator::ReduceAndStartGather(const Buffer& buffer, ReduceOp op, Block* block) {
  const std::size_t item = SizeOf(buffer.type);
  char* const data = static_cast<char*>(buffer.data);
  const std::size_t begin = block->SliceBegin(rank(), size());
  const std::size_t mine = block->SliceBegin(rank() + 1, size()) - begin;
  for (int step = 1; step < size(); ++step) {
    const int from = (rank() + step) % size();
    const std::size_t first = block->SliceBegin(from, size());
    const std::size_t count = block->SliceBegin(from + 1, size()) - first;
    if (count == 0) continue;
    block->gather.push_back(PostRecv(data + first * item, count * item, from, kGatherTag));
  }
  if (mine == 0) return;
  std::vector<void*> parts;
  for (int r = 0; r < size(); ++r) {
    parts.push_back(r == rank() ? data + begin * item : block->scratch + r * mine * item);
  }
  ReduceInRankOrder(buffer.type, op, mine, data + begin * item, parts);
  for (int step = 1; step < size(); ++step) {
    const int to = (rank() + size() - step) % size();
    block->gather.push_back(PostSend(data + begin * item, mine * item, to, kGatherTag));
  }
}

// Binomial tree rooted at `root`, piece by piece so that the levels of the tree work at the same
// time.
void HostCommunicator::Broadcast(Buffer inout, int root) {
  CheckBuffer("Broadcast", inout);
  CheckPeer("Broadcast", root);
  if (size() == 1) return;
  const BookedCollective booked(*this, "Broadcast", inout, root);
  const int n = size();
  const int place = (rank() - root + n) % n;
  int subtree = 1;  // my children lie at place + 1, 2, 4, ... below this distance
  while (subtree < n && (place & subtree) == 0) subtree *= 2;
  const int parent = (place - subtree + root + n) % n;
  Waiter waiter(timeout());
  Requests sends;
  for (std::size_t begin = 0; begin < inout.bytes(); begin += kBroadcastBytes) {
    const std::size_t bytes = std::min(kBroadcastBytes, inout.bytes() - begin);
    char* const piece = static_cast<char*>(inout.data) + begin;
    if (place != 0) {
      Requests receive;
      receive.push_back(PostRecv(piece, bytes, parent, kBroadcastTag));
      WaitAll("Broadcast", &waiter, &receive);
    }
    for (int distance = subtree / 2; distance > 0; distance /= 2) {
      if (place + distance >= n) continue;
      sends.push_back(PostSend(piece, bytes, (place + distance + root) % n, kBroadcastTag));
    }
  }
  WaitAll("Broadcast", &waiter, &sends);
}

void HostCommunicator::AllGather(Buffer in, Buffer out) {
  CheckBuffer("AllGather", in);
  CheckBuffer("AllGather", out);
  GRAFT_CHECK(in.type == out.type && out.count == in.count * static_cast<std::size_t>(size()),
              Describe(*this, "AllGather",
                       absl::StrCat("out has ", out.count, " ", NameOf(out.type), ", in has ",
                                    in.count, " ", NameOf(in.type), "; out must be in x ranks")));
  if (in.count == 0) return;
  char* const slots = static_cast<char*>(out.data);
  std::memmove(slots + rank() * in.bytes(), in.data, in.bytes());
  if (size() == 1) return;
  const BookedCollective booked(*this, "AllGather", in);
  ExchangeAll("AllGather", kAllGatherTag, slots + rank() * in.bytes(), in.bytes(), slots);
}

// Dissemination: after round k a rank knows of 2^k ranks that they have come.
void HostCommunicator::Barrier() {
  if (size() == 1) return;
  const BookedCollective booked(*this, "Barrier", {nullptr, 0, DType::kUint8, -1});
  Waiter waiter(timeout());
  for (int distance = 1; distance < size(); distance *= 2) {
    Requests requests;
    requests.push_back(PostRecv(nullptr, 0, (rank() - distance + size()) % size(), kBarrierTag));
    requests.push_back(PostSend(nullptr, 0, (rank() + distance) % size(), kBarrierTag));
    WaitAll("Barrier", &waiter, &requests);
  }
}

}  // namespace graft::comm
