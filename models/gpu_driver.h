// The GPU driver's C interface, found at run time (libcuda.so.1): graft is built without a CUDA
// toolkit and runs where there is no GPU. Types are those of cuda.h, where every handle is a
// pointer and every result an int. Used by gpu_kernels.cc and gpu_graph.cc.
#pragma once

#include <vector>

#include <torch/types.h>

namespace graft::models {

// The first of these shared libraries that there is, else null.
void* OpenLibrary(const std::vector<const char*>& names);

struct GpuDriver {
  int (*attribute)(int* value, int attribute, int device);
  int (*current_context)(void** context);
  int (*retain_context)(void** context, int device);
  int (*set_context)(void* context);
  int (*load)(void** module, const void* image);
  int (*function)(void** function, void* module, const char* name);
  int (*launch)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream,
                void** arguments, void** extra);
  int (*begin_capture)(void* stream, int mode);
  int (*end_capture)(void* stream, void** graph);
  int (*instantiate)(void** executable, void* graph, unsigned long long flags);
  int (*launch_graph)(void* executable, void* stream);
  int (*destroy_graph)(void* graph);
  int (*destroy_executable)(void* executable);

  // Null where there is no driver.
  static const GpuDriver* Get();
  // A thread of autograd may come here before it has touched the GPU.
  void UseDevice(int device) const;
  // Throws (GRAFT_CHECK) naming the call.
  static void Check(int code, const char* call);
};

// LibTorch's current stream on the device, as the driver knows it.
void* CurrentGpuStream(torch::Device device);

}  // namespace graft::models
