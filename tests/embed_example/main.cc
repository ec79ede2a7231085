// A program that has its own MPI: it splits off the ranks that graft shall have and hands graft
// that communicator.
#include <mpi.h>

#include <cstdio>
#include <vector>

#include "comm/mpi_embed.h"
#include "comm/world.h"

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int my_rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &my_rank);
  MPI_Comm mine = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, 0, -my_rank, &mine);  // the host's own order of ranks

  int failures = 0;
  {
    graft::comm::World world(graft::comm::AdoptMpi(mine));
    std::vector<float> values(1000, 1.0f + static_cast<float>(world.rank()));
    world.all().AllReduce({values.data(), values.size(), graft::comm::DType::kFloat32, -1},
                          graft::comm::ReduceOp::kSum);
    const float expected = static_cast<float>(world.size() * (world.size() + 1)) / 2;
    for (const float value : values) failures += value != expected;
    if (world.rank() == 0) {
      std::printf("ranks %d sum %g\n", world.size(), static_cast<double>(values[0]));
    }
  }  // graft's communicators end before MPI does; MPI itself stays the host's

  MPI_Comm_free(&mine);
  MPI_Finalize();
  return failures == 0 ? 0 : 1;
}
