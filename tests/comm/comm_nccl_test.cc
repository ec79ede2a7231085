// The common contract over NCCL; run by mpirun, one GPU per rank (or ranks that share GPU 0 with
// NCCL_HOSTID set apart).
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/logging.h"
#include "base/status.h"
#include "comm/mpi_embed.h"
#include "comm/nccl_communicator.h"
#include "comm/world.h"
#include "tests/comm/comm_contract.h"

namespace graft::testing {
namespace {

comm::Communicator* nccl = nullptr;       // transfers together
comm::Communicator* announced = nullptr;  // and announced
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

TEST_P(NcclContract, HoldsWithAnnouncedTransfers) {
  const ContractMemory memory = DeviceMemory();
  GetParam().run(ContractContext{*announced, memory});
}

// More than one transfer in each direction at a time, started in another order by the receiver's
// tags: what the announcements compare.
TEST(NcclCommunicator, AnnouncedTransfersArriveInOrder) {
  if (announced->size() == 1) return;
  constexpr int kCount = 20;
  const int peer = announced->rank() ^ 1;
  if (peer >= announced->size()) return;
  const ContractMemory memory = DeviceMemory();
  const ContractContext context{*announced, memory};
  std::vector<std::unique_ptr<ContractBuffer>> in, out;
  std::vector<std::unique_ptr<comm::Request>> requests;
  for (int i = 0; i < kCount; ++i) {
    const std::vector<double> values(1000 * (i + 1), i + 100.0 * announced->rank());
    out.push_back(std::make_unique<ContractBuffer>(context, comm::DType::kFloat32, values));
    in.push_back(std::make_unique<ContractBuffer>(context, comm::DType::kFloat32,
                                                  std::vector<double>(values.size(), -1)));
    requests.push_back(announced->StartRecv(in.back()->get(), peer, i));
  }
  for (int i = 0; i < kCount; ++i) requests.push_back(announced->StartSend(out[i]->get(), peer, i));
  for (const auto& request : requests) request->Wait();
  for (int i = 0; i < kCount; ++i) EXPECT_EQ(in[i]->values()[0], i + 100.0 * peer);
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
  const auto make = [&](graft::comm::NcclTransfers transfers) {
    auto made =
        graft::comm::MakeNcclCommunicator(all.Split(0, all.rank(), "nccl"), device, transfers);
    if (!made.ok()) {
      LOG(ERROR) << made.status();
      all.Abort(1);
    }
    return made;
  };
  const auto together = make(graft::comm::NcclTransfers::kTogether);
  const auto announced = make(graft::comm::NcclTransfers::kAnnounced);
  if (!together.ok() || !announced.ok()) return 1;
  graft::testing::nccl = together->get();
  graft::testing::announced = announced->get();
  graft::testing::device = device;
  int64_t failed = RUN_ALL_TESTS();
  all.AllReduce({&failed, 1, graft::comm::DType::kInt64, -1}, graft::comm::ReduceOp::kMax);
  return failed == 0 ? 0 : 1;
}
