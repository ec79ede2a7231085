#include "comm/launcher.h"

#include <signal.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::comm {

LaunchInfo ReadLaunchInfo(const std::function<const char*(const char*)>& lookup) {
  LaunchInfo info;
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    if (lookup(name) != nullptr) info.under_mpi = true;
  }
  // mpirun starts its daemons by srun, so under mpirun the step's tasks are daemons and say nothing
  // about ranks.
  if (lookup("OMPI_COMM_WORLD_SIZE") != nullptr) return info;
  const char* tasks = lookup("SLURM_STEP_NUM_TASKS");
  if (tasks != nullptr && !absl::SimpleAtoi(tasks, &info.slurm_step_tasks)) {
    info.slurm_step_tasks = 0;
  }
  return info;
}

absl::Status CheckLaunch(const LaunchInfo& info, int mpi_size) {
  if (info.slurm_step_tasks <= 1 || mpi_size > 1) return absl::OkStatus();
  return PeerError(absl::StrCat(
      "the SLURM step has ", info.slurm_step_tasks,
      " tasks but MPI sees 1 rank: the tasks were not connected; start with srun --mpi=pmix (see "
      "srun --mpi=list; Open MPI must be built with PMIx) or with mpirun"));
}

std::string HostName() {
  char name[256] = "";
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

bool IsLauncherName(const std::string& program) {
  for (const char* name : {"mpirun", "mpiexec", "orterun", "orted", "prterun", "prted",
                           "slurmstepd", "hydra_pmi_proxy"}) {
    // The kernel keeps 15 bytes of a name; mpiexec comes as mpiexec.hydra, mpirun as
    // mpirun.openmpi.
    if (absl::StartsWith(program, name)) return true;
  }
  return false;
}

void DieWithLauncher() {
#ifdef __linux__
  const pid_t parent = ::getppid();
  std::ifstream file(absl::StrCat("/proc/", parent, "/comm"));
  std::string name;
  std::getline(file, name);
  if (!IsLauncherName(name)) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // It may have died in between.
  if (::getppid() != parent) ::raise(SIGKILL);
#endif
}

}  // namespace graft::comm
