// Finds what makes the host wait for a GPU.
#pragma once

#include <dlfcn.h>

#include "base/status.h"

namespace graft::testing {

// While one lives, LibTorch throws where it would wait for a GPU. Its switch,
// c10::cuda::warning_state(), stands in a header that needs a CUDA toolkit, but is a symbol too.
class NoWaiting {
 public:
  NoWaiting() : mode_(Find()) { *mode_ = kError; }
  ~NoWaiting() { *mode_ = kOff; }
  NoWaiting(const NoWaiting&) = delete;
  NoWaiting& operator=(const NoWaiting&) = delete;

 private:
  static constexpr int kOff = 0, kError = 2;  // c10::cuda::SyncDebugMode
  static int* Find() {
    void* const mode = ::dlsym(RTLD_DEFAULT, "_ZZN3c104cuda13warning_stateEvE14warning_state_");
    GRAFT_CHECK(mode != nullptr, "LibTorch's synchronisation mode is not there");
    return static_cast<int*>(mode);
  }
  int* const mode_;
};

}  // namespace graft::testing
