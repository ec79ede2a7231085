#include "comm/launcher.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "base/status.h"

namespace graft::comm {
namespace {

LaunchInfo InfoOf(const std::map<std::string, std::string>& environment) {
  return ReadLaunchInfo([&](const char* name) -> const char* {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  });
}

TEST(Launcher, PlainStartIsOneRank) {
  const LaunchInfo info = InfoOf({{"SLURM_NTASKS", "4"}, {"SLURM_JOB_ID", "7"}});
  EXPECT_FALSE(info.under_mpi) << "a batch shell is no task of a step";
  EXPECT_TRUE(CheckLaunch(info, 1).ok());
}

TEST(Launcher, KnowsMpirunPmixAndPmi) {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    EXPECT_TRUE(InfoOf({{name, "0"}}).under_mpi) << name;
  }
}

TEST(Launcher, StepWithoutPmixGetsAHint) {
  const LaunchInfo info = InfoOf({{"SLURM_STEP_NUM_TASKS", "4"}});
  EXPECT_FALSE(info.under_mpi);
  const absl::Status error = CheckLaunch(info, 1);
  EXPECT_EQ(KindOf(error), ErrorKind::kPeer);
  EXPECT_NE(std::string(error.message()).find("--mpi=pmix"), std::string::npos);
  EXPECT_NE(std::string(error.message()).find("4 tasks"), std::string::npos);
}

TEST(Launcher, ConnectedStepAndSingleTaskAreFine) {
  EXPECT_TRUE(CheckLaunch(InfoOf({{"SLURM_STEP_NUM_TASKS", "4"}, {"PMIX_RANK", "0"}}), 4).ok());
  EXPECT_TRUE(CheckLaunch(InfoOf({{"SLURM_STEP_NUM_TASKS", "1"}}), 1).ok());
}

TEST(Launcher, MpirunInsideSlurmMayStartOneRank) {
  // mpirun's daemons run as a step of two tasks, one per node; the job has one rank.
  const LaunchInfo info = InfoOf({{"SLURM_STEP_NUM_TASKS", "2"}, {"OMPI_COMM_WORLD_SIZE", "1"}});
  EXPECT_TRUE(info.under_mpi);
  EXPECT_TRUE(CheckLaunch(info, 1).ok());
}

}  // namespace
}  // namespace graft::comm
