// The common contract over NCCL; run by mpirun, one GPU per rank (or ranks that share GPU 0 with
// NCCL_HOSTID set apart).
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "base/logging.h"
#include "base/status.h"
#include "comm/mpi_embed.h"
#include "comm/nccl_communicator.h"
#include "comm/world.h"
#include "tests/comm/comm_contract.h"

namespace graft::testing {
namespace {

comm::Communicator* nccl = nullptr;
int device = 0;

ContractMemory DeviceMemory() {
  ContractMemory memory;
  memory.device = device;
  memory.allocate = [](std::size_t bytes) {
    void* data = nullptr;
    EXPECT_EQ(cudaMalloc(&data, bytes + 1), cudaSuccess);
    return data;
  };
  memory.release = [](void* data) { EXPECT_EQ(cudaFree(data), cudaSuccess); };
  memory.copy = [](void* to, const void* from, std::size_t bytes) {
    EXPECT_EQ(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), cudaSuccess);
  };
  return memory;
}

class NcclContract : public ::testing::TestWithParam<ContractCase> {};

TEST_P(NcclContract, Holds) {
  const ContractMemory memory = DeviceMemory();
  GetParam().run(ContractContext{*nccl, memory});
}

INSTANTIATE_TEST_SUITE_P(World, NcclContract, ::testing::ValuesIn(CommonContract()),
                         [](const auto& row) { return std::string(row.param.name); });

TEST(NcclCommunicator, HostMemoryIsABug) {
  float value = 0;
  const absl::Status error = ErrorOf([&] {
    nccl->AllReduce({&value, 1, comm::DType::kFloat32, -1}, comm::ReduceOp::kSum);
  });
  EXPECT_EQ(KindOf(error), ErrorKind::kBug);
}

}  // namespace
}  // namespace graft::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  auto world = graft::comm::World::Create();
  if (!world.ok()) {
    LOG(ERROR) << world.status();
    return 1;
  }
  graft::comm::Communicator& all = (*world)->all();
  all.set_timeout(absl::Seconds(60));
  int devices = 0;
  cudaGetDeviceCount(&devices);
  const int device = devices > 0 ? (*world)->local_rank() % devices : 0;
  auto made = graft::comm::MakeNcclCommunicator(all.Split(0, all.rank(), "nccl"), device);
  if (!made.ok()) {
    LOG(ERROR) << made.status();
    all.Abort(1);
    return 1;
  }
  graft::testing::nccl = made->get();
  graft::testing::device = device;
  int64_t failed = RUN_ALL_TESTS();
  all.AllReduce({&failed, 1, graft::comm::DType::kInt64, -1}, graft::comm::ReduceOp::kMax);
  return failed == 0 ? 0 : 1;
}
