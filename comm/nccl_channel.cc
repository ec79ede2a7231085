#include "comm/nccl_channel.h"

namespace graft::comm {
namespace {

constexpr int kIdTag = 0;

}  // namespace

NcclChannel::NcclChannel(Communicator& host, int peer, bool is_sender) : is_sender_(is_sender) {
  const Buffer id_bytes{&id_, sizeof(id_), DType::kUint8, -1};
  if (is_sender) {
    id_ = MakeNcclId();
    id_request_ = host.StartSend(id_bytes, peer, kIdTag);
  } else {
    id_request_ = host.StartRecv(id_bytes, peer, kIdTag);
  }
}

void NcclChannel::Progress() {
  if (handle_ == nullptr) {
    if (!id_request_->Test()) return;
    handle_ = std::make_unique<NcclHandle>(id_, /*size=*/2, /*rank=*/is_sender_ ? 0 : 1);
  }
  while (handle_->IsReady()) {
    if (in_call_ != nullptr) {
      in_call_->done.Record(handle_->stream());
      in_call_->issued = true;
      in_call_ = nullptr;
    }
    if (waiting_.empty()) return;
    in_call_ = std::move(waiting_.front());
    waiting_.pop_front();
    Issue(in_call_.get());
  }
}

void NcclChannel::Issue(NcclTransfer* transfer) {
  transfer->ready.MakeWait(handle_->stream());
  const Buffer& data = transfer->data;
  if (is_sender_) {
    handle_->Enqueue("ncclSend", [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclSend(data.data, data.bytes(), ncclUint8, 1, comm, stream);
    });
  } else {
    handle_->Enqueue("ncclRecv", [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclRecv(data.data, data.bytes(), ncclUint8, 0, comm, stream);
    });
  }
}

void NcclChannel::Abort() {
  if (handle_ != nullptr) handle_->Abort();
}

}  // namespace graft::comm
