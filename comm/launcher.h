// What the environment says about how this process was started. Pure, so that it can be tested.
// Used by world.cc.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"

namespace graft::comm {

struct LaunchInfo {
  bool under_mpi = false;    // a launcher set the variables that MPI_Init needs
  int slurm_step_tasks = 0;  // tasks of the SLURM step, 0 = not in a step
};

// `lookup` returns the variable's value or null, as getenv does.
LaunchInfo ReadLaunchInfo(const std::function<const char*(const char*)>& lookup);
// Kind peer when a multi-task SLURM step was not started through PMIx and so every task would be a
// job of its own.
absl::Status CheckLaunch(const LaunchInfo& info, int mpi_size);

std::string HostName();

// True for the name of a program that starts ranks: mpirun, orted, slurmstepd, hydra_pmi_proxy, ...
bool IsLauncherName(const std::string& program);
// From now on the kernel kills this process when its parent dies, if the parent is a launcher: a
// rank whose mpirun was killed must not compute on as an orphan. Linux; elsewhere nothing.
void DieWithLauncher();

}  // namespace graft::comm
