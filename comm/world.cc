#include "comm/world.h"

#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/logging.h"
#include "base/status.h"
#include "comm/agree.h"
#include "comm/launcher.h"
#include "comm/local_communicator.h"
#include "comm/mpi_communicator.h"
#include "comm/nccl_communicator.h"
#include "comm/watchdog_thread.h"

namespace graft::comm {
namespace {

// How long a finished rank waits for the others before it gives them up.
constexpr absl::Duration kExitLimit = absl::Seconds(60);

}  // namespace

absl::StatusOr<std::unique_ptr<World>> World::Create() {
  const LaunchInfo info = ReadLaunchInfo([](const char* name) { return std::getenv(name); });
  if (info.under_mpi) DieWithLauncher();
  if (!info.under_mpi) {
    GRAFT_RETURN_IF_ERROR(CheckLaunch(info, 1));
    return std::make_unique<World>(std::move(MakeLocalCommunicators(1)[0]));
  }
  GRAFT_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> all, InitialiseMpi());
  const absl::Status launch = CheckLaunch(info, all->size());
  if (!launch.ok()) {
    all.reset();
    FinaliseMpi();
    return launch;
  }
  try {
    auto world = std::make_unique<World>(std::move(all));
    world->owns_mpi_ = true;
    return world;
  } catch (const StatusError& error) {
    return error.status();
  }
}

World::World(std::unique_ptr<Communicator> all)
    : recorder_(std::make_unique<FlightRecorder>()),
      heartbeat_(std::make_unique<Heartbeat>()),
      all_(std::move(all)) {
  all_->OpenBook(recorder_.get(), all_->name());
  const std::string host = HostName();
  const std::vector<std::string> hosts = AllGatherStrings(*all_, host);
  local_size_ = 0;
  for (int r = 0; r < size(); ++r) {
    if (hosts[r] != host) continue;
    if (r < rank()) ++local_rank_;
    ++local_size_;
  }
}

World::~World() {
  // While an error unwinds, the other ranks are not on their way here: leave MPI to the launcher.
  if (!owns_mpi_ || std::uncaught_exceptions() > 0) return;
  if (watchdog_ != nullptr) heartbeat_->Enter(Phase::kExit);
  try {
    // MPI_Finalize blocks without a deadline: make sure first that everybody has come.
    all_->set_timeout(std::min(all_->timeout(), kExitLimit));
    all_->Barrier();
  } catch (const StatusError& error) {
    LOG(ERROR) << "at the end of the run: " << error.what();
    all_->Abort(ExitCode(ErrorKind::kPeer));
  }
  all_.reset();
  FinaliseMpi();
}

absl::StatusOr<Groups> World::MakeGroups(RankGrid grid) {
  if (grid.data < 1 || grid.pipeline < 1 || grid.world() != size()) {
    return RecipeError(
        absl::StrCat("parallel.data ", grid.data, " x parallel.pipeline ", grid.pipeline, " needs ",
                     grid.world(), " ranks, the job has ", size(),
                     size() == 1 ? " rank (started without mpirun or srun?)" : " ranks"));
  }
  Groups groups;
  groups.grid = grid;
  groups.data_group = all_->Split(grid.PipelineRank(rank()), grid.DataRank(rank()), "data");
  groups.pipeline_group = all_->Split(grid.DataRank(rank()), grid.PipelineRank(rank()), "pipeline");
  return groups;
}

absl::Status World::AddDeviceGroups(Groups* groups, int device) {
  const auto add = [&](Communicator& host, NcclTransfers transfers,
                       std::unique_ptr<Communicator>* group) -> absl::Status {
    if (host.size() == 1) return absl::OkStatus();
    GRAFT_ASSIGN_OR_RETURN(
        *group, MakeNcclCommunicator(host.Split(0, host.rank(), "device"), device, transfers));
    return absl::OkStatus();
  };
  GRAFT_RETURN_IF_ERROR(AgreeOnStatus(
      all(), add(*groups->data_group, NcclTransfers::kTogether, &groups->device_data_group)));
  return AgreeOnStatus(all(), add(*groups->pipeline_group, NcclTransfers::kAnnounced,
                                  &groups->device_pipeline_group));
}

}  // namespace graft::comm
