// Ranks as threads for tests: RunRanks(4, [](comm::Communicator& world) { ... }). Never hangs: a
// rank that fails (exception or fatal assertion) or returns early gives the ranks that wait for it
// a peer error, and every call has a deadline.
#pragma once

#include <gtest/gtest.h>

#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "comm/local_communicator.h"

namespace graft::testing {

struct RunRanksOptions {
  std::shared_ptr<comm::LocalFaults> faults;
  absl::Duration timeout = absl::Seconds(60);  // of each call
};

// Runs `body` once per rank, at the same time. Rethrows the exception that came first; the peer
// errors that it caused in other ranks stay silent.
inline void RunRanks(int size, const std::function<void(comm::Communicator&)>& body,
                     const RunRanksOptions& options = {}) {
  std::mutex mutex;
  std::exception_ptr first;
  const auto run = [&](std::unique_ptr<comm::Communicator> world) {
    world->set_timeout(options.timeout);
    try {
      body(*world);
      if (::testing::Test::HasFatalFailure()) world->Abort(1);
    } catch (...) {
      {
        std::lock_guard<std::mutex> lock(mutex);
        if (first == nullptr) first = std::current_exception();
      }
      world->Abort(1);
    }
  };
  std::vector<std::unique_ptr<comm::Communicator>> worlds =
      comm::MakeLocalCommunicators(size, options.faults);
  std::vector<std::thread> threads;
  for (auto& world : worlds) threads.emplace_back(run, std::move(world));
  for (std::thread& thread : threads) thread.join();
  if (first != nullptr && !::testing::Test::HasFatalFailure()) std::rethrow_exception(first);
}

}  // namespace graft::testing
