// World's watchdog: the node's board, the thread, the files.
#include <fcntl.h>
#include <unistd.h>

#include <ctime>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/logging.h"
#include "base/status.h"
#include "base/text.h"
#include "comm/agree.h"
#include "comm/flight_dump.h"
#include "comm/launcher.h"
#include "comm/node_board.h"
#include "comm/watchdog_thread.h"
#include "comm/world.h"

namespace graft::comm {
namespace {

// A name that no other job of the machine has, the same on all ranks.
std::string BoardName(Communicator& all) {
  uint64_t number = 0;
  const UniqueFd random(::open("/dev/urandom", O_RDONLY | O_CLOEXEC));
  if (::read(random.get(), &number, sizeof(number)) != static_cast<ssize_t>(sizeof(number))) {
    number = static_cast<uint64_t>(MonotonicNanos()) ^ static_cast<uint64_t>(::getpid());
  }
  return BroadcastString(all, absl::StrCat("graft-", Hex64(number)), 0);
}

// What the dump of this rank says besides its operations.
FlightDump DumpTemplate(const WatchdogIdentity& identity, const RankGrid& grid,
                        const std::string& start) {
  FlightDump dump;
  dump.start = start;
  dump.rank = identity.rank;
  dump.size = identity.size;
  dump.host = identity.host;
  dump.data_rank = grid.DataRank(identity.rank);
  dump.stage = grid.PipelineRank(identity.rank);
  return dump;
}

}  // namespace

void World::StartWatchdog(const WatchdogOptions& options) {
  heartbeat_->set_limits(options.limits);
  const std::string name = BoardName(*all_);
  std::shared_ptr<NodeBoard> board;
  if (local_size_ > 1) {
    auto opened = NodeBoard::Open(name, local_size_);
    if (opened.ok()) board = *std::move(opened);
    if (!opened.ok()) {
      LOG(WARNING) << "the ranks of this node cannot watch each other: "
                   << opened.status().message();
    }
  }
  const WatchdogIdentity identity{rank(), size(), HostName()};
  auto watchdog = std::make_unique<Watchdog>(identity, *heartbeat_, *recorder_, board, local_rank_);
  watchdog->Stamp(MonotonicNanos());
  all_->Barrier();  // everybody has opened the board and stands on it: its name can go
  if (board != nullptr && local_rank_ == 0) NodeBoard::Remove(name);

  WatchdogActions actions;
  actions.dump = [folder = options.flight_folder, dump = DumpTemplate(identity, options.grid, name),
                  recorder = recorder_.get(),
                  heartbeat = heartbeat_.get()](const std::string& reason) mutable {
    if (folder.empty()) return;
    dump.reason = reason;
    dump.written_s = static_cast<int64_t>(std::time(nullptr));
    dump.phase = PhaseName(heartbeat->phase());
    dump.step = heartbeat->step();
    TakeRecorder(*recorder, &dump);
    const absl::Status written = WriteFlightDump(folder, dump);
    if (!written.ok()) LOG(WARNING) << "flight recorder: " << written.message();
  };
  actions.print = options.print;
  actions.exit = [](int code) { ::_exit(code); };
  watchdog_ = std::make_unique<WatchdogThread>(std::move(watchdog), std::move(actions));
}

void World::DumpFlight(const std::string& reason, FlightScope scope) {
  if (watchdog_ == nullptr) return;
  if (scope == FlightScope::kNode) {
    watchdog_->DumpNode(reason);
  } else {
    watchdog_->DumpSelf(reason);
  }
}

}  // namespace graft::comm
