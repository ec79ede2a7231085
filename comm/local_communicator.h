// Ranks as threads of one process: the communicator of a program that no launcher started (one
// rank), and of tests that want several ranks without mpirun. Messages are matched as MPI matches
// them (large sends complete only when received), so that a wrong order hangs here too; faults can
// be injected. A rank whose communicator is destroyed has left: who waits for it gets a peer error
// at once.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "comm/communicator.h"

namespace graft::comm {

// What shall go wrong, by rank of the communicators that MakeLocalCommunicators made (their splits
// included). Thread-safe; one object serves one set of ranks. Counts start at the call that sets
// the fault.
class LocalFaults {
 public:
  // Every send, receive and collective of this rank starts that much later.
  void Delay(int rank, absl::Duration each_call);
  // The `nth` (0 = next) message from one rank to another is lost; its send succeeds. Collectives
  // consist of messages.
  void Drop(int from, int to, int nth = 0);
  // One bit of the middle byte of that message flips.
  void Corrupt(int from, int to, int nth = 0);
  // The rank throws (kind peer) on its call number `calls_before` from now; the others get peer
  // errors.
  void Kill(int rank, int calls_before = 0);

 private:
  friend class LocalCommunicator;
  enum class Fate { kDeliver, kDrop, kCorrupt };
  struct MessageFault {
    int from;
    int to;
    int left;
    Fate fate;
  };
  struct RankFault {
    int rank;
    int left;
  };
  absl::Duration DelayOf(int rank);
  bool TakeKill(int rank);
  Fate TakeFate(int from, int to);

  std::mutex mutex_;
  std::vector<absl::Duration> delays_;
  std::vector<MessageFault> messages_;
  std::vector<RankFault> kills_;
};

// One communicator per rank, each for one thread; rank = index. Abort on one of them gives all
// others peer errors.
std::vector<std::unique_ptr<Communicator>> MakeLocalCommunicators(
    int size, std::shared_ptr<LocalFaults> faults = nullptr, const std::string& name = "world");

}  // namespace graft::comm
