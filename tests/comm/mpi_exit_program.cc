// Ends a job of two ranks in the ways that real ranks end; mpi_exit_test.cmake checks what mpirun
// returns and prints. Usage: mpi_exit_program MODE
#include <unistd.h>

#include <cstdio>
#include <string>
#include <thread>

#include "base/logging.h"
#include "base/status.h"
#include "comm/world.h"

namespace {

using graft::comm::Communicator;

int Run(const std::string& mode, graft::comm::World& world) {
  Communicator& all = world.all();
  all.Barrier();
  const bool second = world.rank() == 1;
  if (mode == "clean") return 0;
  if (mode == "stopped") return 75;
  if (mode == "abort" && second) all.Abort(76);
  if (mode == "abort-thread" && second) {
    // As the watchdog does, while the main thread sits elsewhere.
    std::thread watchdog([&all] { all.Abort(76); });
    watchdog.join();
  }
  if (mode == "vanish" && second) _exit(3);
  if (mode == "hang" && second) sleep(600);
  if (mode == "hang") all.set_timeout(absl::Seconds(1));
  try {
    all.Barrier();
    sleep(60);  // only reached when the other rank's end went unnoticed
  } catch (const graft::StatusError& error) {
    std::fprintf(stderr, "graft: error: %s\n", error.what());
    all.Abort(graft::ExitCodeOf(error.status()));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  graft::InitLogging(argv[0]);
  auto world = graft::comm::World::Create();
  if (!world.ok() || argc != 2) return 64;
  return Run(argv[1], **world);
}
