// Seconds since it was made, by a clock that only goes forward.
#pragma once

#include <chrono>

namespace graft::trainer {

class Stopwatch {
 public:
  double Seconds() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace graft::trainer
