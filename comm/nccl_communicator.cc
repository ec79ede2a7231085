#include "comm/nccl_communicator.h"

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "comm/booking.h"
#include "comm/nccl_channel.h"
#include "comm/nccl_handle.h"
#include "comm/ordered_reduce.h"
#include "comm/wait.h"
#include "comm/world.h"

namespace graft::comm {
namespace {

ncclDataType_t NcclTypeOf(DType type) {
  switch (type) {
    case DType::kUint8:
      return ncclUint8;
    case DType::kInt32:
      return ncclInt32;
    case DType::kInt64:
      return ncclInt64;
    case DType::kFloat32:
      return ncclFloat32;
    case DType::kFloat64:
      return ncclFloat64;
    case DType::kBFloat16:
      return ncclBfloat16;
  }
  return ncclUint8;
}

ncclRedOp_t NcclOpOf(ReduceOp op) {
  if (op == ReduceOp::kMax) return ncclMax;
  return op == ReduceOp::kMin ? ncclMin : ncclSum;
}

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, int device, NcclTransfers transfers);
  ~NcclCommunicator() override;

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  const std::string& name() const override { return host_->name(); }
  const char* backend() const override { return "nccl"; }
  void AllReduce(Buffer inout, ReduceOp op) override;
  std::unique_ptr<Request> StartAllReduce(Buffer inout, ReduceOp op) override;
  void Broadcast(Buffer inout, int root) override;
  void AllGather(Buffer in, Buffer out) override;
  void Barrier() override;
  std::unique_ptr<Request> StartSend(Buffer data, int to, int tag) override;
  std::unique_ptr<Request> StartRecv(Buffer data, int from, int tag) override;
  std::unique_ptr<Communicator> Split(int color, int key, const std::string& name) override;
  void Abort(int exit_code) override;

 private:
  friend class NcclRequest;
  friend class NcclStarted;
  using Call = std::function<ncclResult_t(ncclComm_t, cudaStream_t)>;
  void CheckBuffer(const char* operation, const Buffer& buffer) const;
  // Hands a collective to NCCL, behind what the default stream has been given so far.
  void Issue(const char* operation, const Call& call);
  // Issues a collective and waits until the device has done it.
  void Run(const char* operation, const Call& call);
  Call AllReduceCall(const Buffer& inout, ReduceOp op) const;  // checked
  // Polls `done`, moving all channels on; aborts NCCL and throws kind peer past the timeout.
  template <typename Done>
  void WaitUntil(const char* operation, const std::vector<int>& peers, Done done);
  void ProgressChannels();
  std::unique_ptr<Request> StartTransfer(Buffer data, int peer, int tag, bool is_send);
  std::vector<int> Others() const;

  const std::unique_ptr<Communicator> host_;
  const int device_;
  const NcclTransfers transfers_;
  std::unique_ptr<NcclHandle> all_;
  CudaEvent ready_;
  CudaEvent done_;
  std::map<std::pair<int, bool>, std::unique_ptr<NcclChannel>> channels_;  // (peer, is_send)
};

class NcclRequest : public Request {
 public:
  NcclRequest(NcclCommunicator* comm, NcclChannel* channel, const char* operation, int peer,
              std::shared_ptr<NcclTransfer> transfer)
      : comm_(comm),
        channel_(channel),
        operation_(operation),
        peer_(peer),
        transfer_(std::move(transfer)) {}

  ~NcclRequest() override {
    // A kernel may still touch the buffer; ending the channel is the only way to cancel it.
    if (!done_) channel_->Abort();
  }

  bool Test() override {
    if (done_) return true;
    comm_->ProgressChannels();
    done_ = transfer_->IsDone();
    return done_;
  }
  void Wait() override {
    comm_->WaitUntil(operation_, {peer_}, [this] { return Test(); });
  }

 private:
  NcclCommunicator* const comm_;
  NcclChannel* const channel_;
  const char* const operation_;
  const int peer_;
  const std::shared_ptr<NcclTransfer> transfer_;
  bool done_ = false;
};

// A collective that was issued, and that the default stream does not wait for.
class NcclStarted : public Request {
 public:
  NcclStarted(NcclCommunicator* comm, const char* operation) : comm_(comm), operation_(operation) {
    done_.Record(comm->all_->stream());
  }
  ~NcclStarted() override {
    if (!finished_) comm_->all_->Abort();
  }

  bool Test() override {
    if (!finished_) finished_ = comm_->all_->IsReady() && done_.IsDone();
    return finished_;
  }
  void Wait() override {
    comm_->WaitUntil(operation_, comm_->Others(), [this] { return Test(); });
  }

 private:
  NcclCommunicator* const comm_;
  const char* const operation_;
  CudaEvent done_;
  bool finished_ = false;
};

class EmptyRequest : public Request {
 public:
  bool Test() override { return true; }
  void Wait() override {}
};

NcclCommunicator::NcclCommunicator(std::unique_ptr<Communicator> host, int device,
                                   NcclTransfers transfers)
    : host_(std::move(host)), device_(device), transfers_(transfers) {
  set_timeout(host_->timeout());
  if (host_->book().recorder != nullptr)
    OpenBook(host_->book().recorder, absl::StrCat(host_->book().name, " (nccl)"));
  ncclUniqueId id{};
  if (rank() == 0) id = MakeNcclId();
  host_->Broadcast({&id, sizeof(id), DType::kUint8, -1}, 0);
  all_ = std::make_unique<NcclHandle>(id, size(), rank());
  WaitUntil("connect", Others(), [this] { return all_->IsReady(); });
}

NcclCommunicator::~NcclCommunicator() { cudaSetDevice(device_); }

std::vector<int> NcclCommunicator::Others() const {
  std::vector<int> others;
  for (int r = 0; r < size(); ++r) {
    if (r != rank()) others.push_back(r);
  }
  return others;
}

void NcclCommunicator::CheckBuffer(const char* operation, const Buffer& buffer) const {
  GRAFT_CHECK(
      buffer.device == device_,
      Describe(*this, operation,
               absl::StrCat("buffer on device ", buffer.device,
                            " (-1 = host), this communicator moves memory of device ", device_)));
}

void NcclCommunicator::ProgressChannels() {
  for (auto& entry : channels_) entry.second->Progress();
}

template <typename Done>
void NcclCommunicator::WaitUntil(const char* operation, const std::vector<int>& peers, Done done) {
  BlockedTimer timer(&blocked_seconds_);
  Waiter waiter(timeout());
  while (!done()) {
    ProgressChannels();
    if (waiter.Pause()) continue;
    all_->Abort();
    for (auto& entry : channels_) entry.second->Abort();
    throw StatusError(TimeoutError(*this, operation, peers, waiter.waited_seconds()));
  }
}

void NcclCommunicator::Issue(const char* operation, const Call& call) {
  CheckCuda(cudaSetDevice(device_), "cudaSetDevice");
  ready_.Record(cudaStreamLegacy);
  ready_.MakeWait(all_->stream());
  all_->Enqueue(operation, call);
  WaitUntil(operation, Others(), [this] { return all_->IsReady(); });
}

void NcclCommunicator::Run(const char* operation, const Call& call) {
  Issue(operation, call);
  done_.Record(all_->stream());
  WaitUntil(operation, Others(), [this] { return all_->IsReady() && done_.IsDone(); });
}

NcclCommunicator::Call NcclCommunicator::AllReduceCall(const Buffer& inout, ReduceOp op) const {
  CheckBuffer("AllReduce", inout);
  GRAFT_CHECK(IsReducible(inout.type) || inout.type == DType::kBFloat16,
              Describe(*this, "AllReduce",
                       absl::StrCat("type ", NameOf(inout.type),
                                    ", allowed float32, float64, int64, bfloat16")));
  return [inout, op](ncclComm_t comm, cudaStream_t stream) {
    return ncclAllReduce(inout.data, inout.data, inout.count, NcclTypeOf(inout.type), NcclOpOf(op),
                         comm, stream);
  };
}

void NcclCommunicator::AllReduce(Buffer inout, ReduceOp op) {
  if (inout.count == 0) return;
  const Call call = AllReduceCall(inout, op);
  const BookedCollective booked(*this, "AllReduce", inout);
  Run("AllReduce", call);
}

std::unique_ptr<Request> NcclCommunicator::StartAllReduce(Buffer inout, ReduceOp op) {
  if (inout.count == 0) return std::make_unique<EmptyRequest>();
  const Call call = AllReduceCall(inout, op);
  return BookStarted(*this, kStartedAllReduce, inout, [&] {
    Issue("AllReduce", call);
    return std::make_unique<NcclStarted>(this, "AllReduce");
  });
}

void NcclCommunicator::Broadcast(Buffer inout, int root) {
  if (inout.count == 0) return;
  CheckBuffer("Broadcast", inout);
  const BookedCollective booked(*this, "Broadcast", inout, root);
  Run("Broadcast", [&](ncclComm_t comm, cudaStream_t stream) {
    return ncclBroadcast(inout.data, inout.data, inout.count, NcclTypeOf(inout.type), root, comm,
                         stream);
  });
}

void NcclCommunicator::AllGather(Buffer in, Buffer out) {
  if (in.count == 0) return;
  CheckBuffer("AllGather", in);
  CheckBuffer("AllGather", out);
  GRAFT_CHECK(in.type == out.type && out.count == in.count * static_cast<std::size_t>(size()),
              Describe(*this, "AllGather", "out must have in.count x ranks elements"));
  const BookedCollective booked(*this, "AllGather", in);
  Run("AllGather", [&](ncclComm_t comm, cudaStream_t stream) {
    return ncclAllGather(in.data, out.data, in.count, NcclTypeOf(in.type), comm, stream);
  });
}

void NcclCommunicator::Barrier() { host_->Barrier(); }

std::unique_ptr<Request> NcclCommunicator::StartTransfer(Buffer data, int peer, int tag,
                                                         bool is_send) {
  const char* const operation = is_send ? "Send" : "Recv";
  if (data.count == 0) return std::make_unique<EmptyRequest>();
  CheckBuffer(operation, data);
  GRAFT_CHECK(peer >= 0 && peer < size() && peer != rank(),
              Describe(*this, operation, absl::StrCat("peer ", peer)));
  CheckCuda(cudaSetDevice(device_), "cudaSetDevice");
  std::unique_ptr<NcclChannel>& channel = channels_[{peer, is_send}];
  if (channel == nullptr) {
    channel = std::make_unique<NcclChannel>(*host_, peer, is_send,
                                            transfers_ == NcclTransfers::kAnnounced);
  }
  auto transfer = std::make_shared<NcclTransfer>();
  transfer->data = data;
  transfer->tag = tag;
  transfer->ready.Record(cudaStreamLegacy);
  channel->Add(transfer);
  // NCCL takes a call on a thread of its own. What the caller does next may stop the host, and that
  // thread with it, until the device is idle.
  WaitUntil(operation, {peer}, [&] {
    channel->Progress();
    return channel->Settled();
  });
  return BookTransfer(
      *this, operation, data, peer,
      std::make_unique<NcclRequest>(this, channel.get(), operation, peer, std::move(transfer)));
}

std::unique_ptr<Request> NcclCommunicator::StartSend(Buffer data, int to, int tag) {
  return StartTransfer(data, to, tag, /*is_send=*/true);
}

std::unique_ptr<Request> NcclCommunicator::StartRecv(Buffer data, int from, int tag) {
  return StartTransfer(data, from, tag, /*is_send=*/false);
}

std::unique_ptr<Communicator> NcclCommunicator::Split(int color, int key,
                                                      const std::string& part_name) {
  std::unique_ptr<Communicator> host_part = host_->Split(color, key, part_name);
  host_part->set_timeout(timeout());
  return std::make_unique<NcclCommunicator>(std::move(host_part), device_, transfers_);
}

void NcclCommunicator::Abort(int exit_code) {
  all_->Abort();
  host_->Abort(exit_code);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> host, int device, NcclTransfers transfers) {
  int devices = 0;
  const cudaError_t code = cudaGetDeviceCount(&devices);
  if (code != cudaSuccess || devices == 0) {
    return RecipeError(absl::StrCat("parallel.backend: nccl needs a CUDA device, found none (",
                                    cudaGetErrorString(code), "); allowed here: mpi"));
  }
  if (device < 0 || device >= devices) {
    return RecipeError(absl::StrCat("nccl: CUDA device ", device, ", allowed 0 to ", devices - 1));
  }
  try {
    CheckCuda(cudaSetDevice(device), "cudaSetDevice");
    return std::make_unique<NcclCommunicator>(std::move(host), device, transfers);
  } catch (const StatusError& error) {
    return error.status();
  }
}

const char* NcclVersion() {
  static const std::string version = [] {
    int number = 0;
    if (ncclGetVersion(&number) != ncclSuccess) return std::string("NCCL (unknown version)");
    return absl::StrCat("NCCL ", number / 10000, ".", number / 100 % 100, ".", number % 100);
  }();
  return version.c_str();
}

const char* CudaVersion() {
  static const std::string version = [] {
    int number = 0;
    if (cudaRuntimeGetVersion(&number) != cudaSuccess) return std::string("CUDA (unknown version)");
    return absl::StrCat("CUDA ", number / 1000, ".", number % 1000 / 10);
  }();
  return version.c_str();
}

}  // namespace graft::comm
