#include "comm/nccl_channel.h"

namespace graft::comm {
namespace {

constexpr int kIdTag = 0;

}  // namespace

NcclChannel::NcclChannel(Communicator& host, int peer, bool is_sender, bool announces)
    : is_sender_(is_sender), queue_(host, peer, is_sender, announces, *this) {
  const Buffer id_bytes{&id_, sizeof(id_), DType::kUint8, -1};
  if (is_sender) {
    id_ = MakeNcclId();
    id_request_ = host.StartSend(id_bytes, peer, kIdTag);
  } else {
    id_request_ = host.StartRecv(id_bytes, peer, kIdTag);
  }
}

bool NcclChannel::IsReady() {
  if (handle_ == nullptr) {
    if (!id_request_->Test()) return false;
    handle_ = std::make_unique<NcclHandle>(id_, /*size=*/2, /*rank=*/is_sender_ ? 0 : 1);
  }
  return handle_->IsReady();
}

void NcclChannel::Call(QueuedTransfer& transfer) {
  static_cast<NcclTransfer&>(transfer).ready.MakeWait(handle_->stream());
  const Buffer& data = transfer.data;
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

void NcclChannel::NoteTaken(QueuedTransfer& transfer) {
  static_cast<NcclTransfer&>(transfer).done.Record(handle_->stream());
}

void NcclChannel::Abort() {
  if (handle_ != nullptr) handle_->Abort();
}

}  // namespace graft::comm
