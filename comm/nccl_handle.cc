#include "comm/nccl_handle.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "comm/wait.h"

namespace graft::comm {
namespace {

constexpr absl::Duration kDestroyLimit = absl::Seconds(5);

}  // namespace

void CheckCuda(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  throw StatusError(BugError(absl::StrCat(what, ": CUDA error: ", cudaGetErrorString(code))));
}

CudaEvent::CudaEvent() {
  CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
}

CudaEvent::~CudaEvent() { cudaEventDestroy(event_); }

void CudaEvent::Record(cudaStream_t stream) {
  CheckCuda(cudaEventRecord(event_, stream), "cudaEventRecord");
}

void CudaEvent::MakeWait(cudaStream_t stream) const {
  CheckCuda(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
}

bool CudaEvent::IsDone() const {
  const cudaError_t code = cudaEventQuery(event_);
  if (code == cudaErrorNotReady) return false;
  CheckCuda(code, "cudaEventQuery");
  return true;
}

ncclUniqueId MakeNcclId() {
  ncclUniqueId id;
  const ncclResult_t code = ncclGetUniqueId(&id);
  if (code != ncclSuccess) {
    throw StatusError(PeerError(absl::StrCat("ncclGetUniqueId: ", ncclGetErrorString(code), ": ",
                                             ncclGetLastError(nullptr))));
  }
  return id;
}

NcclHandle::NcclHandle(const ncclUniqueId& id, int size, int rank) {
  CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  Check(ncclCommInitRankConfig(&comm_, size, id, rank, &config), "ncclCommInitRankConfig");
}

NcclHandle::~NcclHandle() {
  if (comm_ != nullptr && !failed_) {
    // Finalize flushes what was issued; it becomes ready or fails soon, or the peers are gone.
    Waiter waiter(kDestroyLimit);
    ncclResult_t state = ncclCommFinalize(comm_);
    while (state == ncclInProgress && waiter.Pause()) ncclCommGetAsyncError(comm_, &state);
    if (state == ncclSuccess) {
      ncclCommDestroy(comm_);
      comm_ = nullptr;
    }
  }
  Abort();
  cudaStreamDestroy(stream_);
}

void NcclHandle::Check(ncclResult_t code, const char* what) {
  if (code == ncclSuccess || code == ncclInProgress) return;
  failed_ = true;
  throw StatusError(
      PeerError(absl::StrCat(what, ": ", ncclGetErrorString(code), ": ", ncclGetLastError(comm_))));
}

bool NcclHandle::IsReady() {
  if (comm_ == nullptr) throw StatusError(PeerError("the NCCL communicator was aborted"));
  ncclResult_t state = ncclSuccess;
  Check(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError");
  Check(state, "NCCL");
  return state == ncclSuccess;
}

void NcclHandle::Enqueue(const char* what,
                         const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& call) {
  Check(call(comm_, stream_), what);
}

void NcclHandle::Abort() {
  failed_ = true;
  if (comm_ != nullptr) ncclCommAbort(comm_);
  comm_ = nullptr;
}

}  // namespace graft::comm
