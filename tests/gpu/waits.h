// Where LibTorch lets the host wait for a GPU: tests forbid it or count it.
#pragma once

#include <dlfcn.h>

#include <string>

#include <c10/util/Exception.h>

#include "base/status.h"

namespace graft::testing {

// LibTorch's switch for what it does before it waits, c10::cuda::warning_state(): it stands in a
// header that needs a CUDA toolkit, but is a symbol too.
class WaitSwitch {
 public:
  enum Mode { kOff = 0, kWarn = 1, kError = 2 };  // c10::cuda::SyncDebugMode
  explicit WaitSwitch(Mode mode) : mode_(Find()) { *mode_ = mode; }
  ~WaitSwitch() { *mode_ = kOff; }
  WaitSwitch(const WaitSwitch&) = delete;
  WaitSwitch& operator=(const WaitSwitch&) = delete;

 private:
  static int* Find() {
    void* const mode = ::dlsym(RTLD_DEFAULT, "_ZZN3c104cuda13warning_stateEvE14warning_state_");
    GRAFT_CHECK(mode != nullptr, "LibTorch's synchronisation mode is not there");
    return static_cast<int*>(mode);
  }
  int* const mode_;
};

// While one lives, LibTorch throws where it would wait.
class NoWaiting {
 private:
  const WaitSwitch switch_{WaitSwitch::kError};
};

// Counts how often LibTorch has waited since it was made.
class WaitCounter {
 public:
  int count() const { return handler_.count; }

 private:
  struct Handler : c10::WarningHandler {
    void process(const c10::Warning& warning) override {
      if (warning.msg().find("synchronizing") != std::string::npos) ++count;
    }
    int count = 0;
  };
  Handler handler_;
  const c10::WarningUtils::WarningHandlerGuard guard_{&handler_};
  const WaitSwitch switch_{WaitSwitch::kWarn};
};

}  // namespace graft::testing
