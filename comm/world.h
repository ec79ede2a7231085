// Owns the way ranks talk for the life of the program: MPI when the process was started by a launcher (mpirun, srun), a
// single-rank local communicator otherwise, or what an embedding program brings. Passed by reference; no globals.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "comm/flight_recorder.h"
#include "comm/heartbeat.h"
#include "comm/rank_grid.h"

namespace graft::comm {

// The communicators of one rank in a data x pipeline grid. data_group: ranks that hold the same stage (rank in it = data
// rank). pipeline_group: the stages of one replica (rank in it = pipeline rank).
struct Groups {
  RankGrid grid;
  std::unique_ptr<Communicator> data_group;
  std::unique_ptr<Communicator> pipeline_group;
  // The same two for memory of this rank's GPU (World::AddDeviceGroups). Null where nobody added them, and for a group of one rank.
  std::unique_ptr<Communicator> device_data_group;
  std::unique_ptr<Communicator> device_pipeline_group;
};

class WatchdogThread;

struct WatchdogOptions {
  PhaseLimits limits;
  RankGrid grid;              // for the flight recorder's file
  std::string flight_folder;  // gets rank-NNNNN.json; empty = none are written
  // Writes the last line of the run. Called on the watchdog's thread: may not wait for the main thread.
  std::function<void(const absl::Status&)> print;
};

class World {
 public:
  // Initialises MPI when the environment says that a launcher started this process (OMPI_COMM_WORLD_SIZE, PMIX_RANK,
  // PMI_RANK); else one rank. Error kind peer with a hint when a multi-task SLURM step sees one MPI rank (PMIx missing).
  static absl::StatusOr<std::unique_ptr<World>> Create();
  // For tests and embedding programs: any communicator.
  explicit World(std::unique_ptr<Communicator> all);
  ~World();  // finalises MPI if Create initialised it (skipped after Abort)

  Communicator& all() { return *all_; }
  int rank() const { return all_->rank(); }
  int size() const { return all_->size(); }
  // Ranks on this node and this rank's place among them.
  int local_size() const { return local_size_; }
  int local_rank() const { return local_rank_; }
  // What this rank does, for the watchdog; the main thread tells it.
  Heartbeat& heartbeat() { return *heartbeat_; }
  // The last operations of all() and its splits.
  FlightRecorder& recorder() { return *recorder_; }
  // Watches this rank and those of its node from now on, until the world ends (watchdog.h). Collective. Without shared
  // memory the other ranks of the node are not watched: a warning.
  void StartWatchdog(const WatchdogOptions& options);
  // Before the job ends because of an error: kNode, when this rank ends it alone: the ranks of the node write their flight
  // recorders; kSelf, when all ranks do the same: this one writes its own. At most 4 s. Nothing before StartWatchdog.
  enum class FlightScope { kSelf, kNode };
  void DumpFlight(const std::string& reason, FlightScope scope);
  // grid.world() must equal size(): error kind recipe that says how many ranks there are. Collective.
  absl::StatusOr<Groups> MakeGroups(RankGrid grid);
  // NCCL groups beside those of the host; `device`: index of this rank's GPU. Kind recipe in builds without NCCL, peer when the
  // ranks do not connect. Collective; the same status on every rank.
  absl::Status AddDeviceGroups(Groups* groups, int device);

 private:
  // Before all_, which books in it.
  std::unique_ptr<FlightRecorder> recorder_;
  std::unique_ptr<Heartbeat> heartbeat_;
  std::unique_ptr<Communicator> all_;
  int local_size_ = 1;
  int local_rank_ = 0;
  bool owns_mpi_ = false;
  std::unique_ptr<WatchdogThread> watchdog_;
};

// "Open MPI v4.1.4 ..." and "NCCL 2.28.9" or "not built in".
const char* MpiVersion();
const char* NcclVersion();
// "CUDA 13.0", of the runtime that NCCL's communicators use, or "not built in".
const char* CudaVersion();

}  // namespace graft::comm
