// How communicators book their operations in the flight recorder: a scope around a collective, a
// wrapper around the request of what was started. Used by the backends; without a recorder both
// cost nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "comm/communicator.h"

namespace graft::comm {

// Lives as long as the collective runs. One that ends with an exception stays unfinished in the
// record. `operation` is a string literal; peer -1 = no root.
class BookedCollective {
 public:
  BookedCollective(Communicator& comm, const char* operation, const Buffer& buffer, int peer = -1);
  ~BookedCollective();
  BookedCollective(const BookedCollective&) = delete;
  BookedCollective& operator=(const BookedCollective&) = delete;

 private:
  FlightRecorder* const recorder_;
  const int exceptions_;
  int64_t sequence_ = 0;
};

// Books a transfer that has just been started; the result takes the request's place.
std::unique_ptr<Request> BookTransfer(Communicator& comm, const char* operation,
                                      const Buffer& buffer, int peer,
                                      std::unique_ptr<Request> request);
// The operation of StartAllReduce where it runs beside what the caller does.
inline constexpr char kStartedAllReduce[] = "StartAllReduce";
// Books a collective, starts it, and wraps its request. While `start` runs the rank waits for it.
std::unique_ptr<Request> BookStarted(Communicator& comm, const char* operation,
                                     const Buffer& buffer,
                                     const std::function<std::unique_ptr<Request>()>& start);

}  // namespace graft::comm
