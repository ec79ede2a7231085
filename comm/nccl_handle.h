// One non-blocking NCCL communicator with its stream: creation, polling, asynchronous errors,
// destruction. Internal to comm/; the only header that includes nccl.h.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <functional>
#include <string>

namespace graft::comm {

// Throw kind peer (NCCL) or bug (CUDA), naming `what`.
void CheckCuda(cudaError_t code, const char* what);

// A CUDA event without timing.
class CudaEvent {
 public:
  CudaEvent();
  ~CudaEvent();
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  void Record(cudaStream_t stream);
  // The stream goes on only after what was recorded.
  void MakeWait(cudaStream_t stream) const;
  bool IsDone() const;

 private:
  cudaEvent_t event_ = nullptr;
};

ncclUniqueId MakeNcclId();

class NcclHandle {
 public:
  // Starts to connect; the current CUDA device is the communicator's.
  NcclHandle(const ncclUniqueId& id, int size, int rank);
  ~NcclHandle();
  NcclHandle(const NcclHandle&) = delete;
  NcclHandle& operator=(const NcclHandle&) = delete;

  // False while NCCL still works on the last call (or connects). Throws kind peer when it failed.
  bool IsReady();
  // Enqueues a NCCL call; only when IsReady, and nothing else until IsReady again.
  void Enqueue(const char* what, const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& call);
  // Ends the communicator and its kernels at once, from any thread.
  void Abort();
  cudaStream_t stream() const { return stream_; }

 private:
  void Check(ncclResult_t code, const char* what);

  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  bool failed_ = false;
};

}  // namespace graft::comm
