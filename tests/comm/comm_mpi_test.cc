// The contract over real MPI ranks, run by mpirun. Every rank runs
// every test; the program succeeds only when all ranks do.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/logging.h"
#include "base/status.h"
#include "comm/agree.h"
#include "comm/mpi_embed.h"
#include "comm/reducer.h"
#include "comm/stage_link.h"
#include "comm/world.h"
#include "tests/comm/comm_contract.h"

namespace graft::testing {
namespace {

using comm::Communicator;
using comm::DType;
using comm::ReduceOp;

comm::World* world = nullptr;

std::vector<ContractCase> AllCases() {
  std::vector<ContractCase> cases = CommonContract();
  cases.insert(cases.end(), HostContract().begin(), HostContract().end());
  return cases;
}

std::string NameOfCase(const ::testing::TestParamInfo<ContractCase>& row) { return row.param.name; }

class MpiContract : public ::testing::TestWithParam<ContractCase> {};

TEST_P(MpiContract, HoldsOnTheWorld) {
  const ContractMemory memory;
  GetParam().run(ContractContext{world->all(), memory});
}

TEST_P(MpiContract, HoldsOnASplit) {
  const ContractMemory memory;
  // Everybody but the last rank, in reverse order; the last one has a group of its own.
  const bool apart = world->rank() == world->size() - 1;
  auto part = world->all().Split(apart ? 1 : 0, -world->rank(), "part");
  GetParam().run(ContractContext{*part, memory});
}

INSTANTIATE_TEST_SUITE_P(World, MpiContract, ::testing::ValuesIn(AllCases()), NameOfCase);

TEST(MpiCommunicator, BackendIsMpiUnderALauncher) {
  EXPECT_STREQ(world->all().backend(), "mpi");
  EXPECT_EQ(world->local_size(), world->size());
  EXPECT_EQ(world->local_rank(), world->rank());
}

// Long messages travel in pieces; with tiny pieces every message is long.
TEST(MpiCommunicator, MessagesInPieces) {
  auto pieces = comm::AdoptMpi(MPI_COMM_WORLD, {"pieces", 1000});
  pieces->set_timeout(world->all().timeout());
  const ContractMemory memory;
  for (const ContractCase& contract_case : CommonContract()) {
    if (std::string(contract_case.name) == "AllReduceEveryTypeAndOp") continue;  // 10,000 messages
    SCOPED_TRACE(contract_case.name);
    contract_case.run(ContractContext{*pieces, memory});
  }
  std::vector<float> values(30000, 1.0f + world->rank());
  pieces->AllReduce({values.data(), values.size(), DType::kFloat32, -1}, ReduceOp::kSum);
  const float sum = static_cast<float>(world->size() * (world->size() + 1)) / 2;
  EXPECT_EQ(values, std::vector<float>(values.size(), sum));
}

TEST(MpiCommunicator, WorldGroupsLinkAndReducersWork) {
  const comm::RankGrid grid{1, world->size()};
  auto groups = world->MakeGroups(grid);
  ASSERT_TRUE(groups.ok()) << groups.status();
  Communicator& pipeline = *groups->pipeline_group;
  comm::StageLink link(pipeline, 7);
  std::vector<float> tensor(50000, -1.0f);
  const comm::Buffer buffer{tensor.data(), tensor.size(), DType::kFloat32, -1};
  if (pipeline.rank() == 0) tensor.assign(tensor.size(), 42.0f);
  if (pipeline.rank() > 0) link.StartRecv(buffer, pipeline.rank() - 1, {1, 2, 3})->Wait();
  if (pipeline.rank() + 1 < pipeline.size()) {
    link.StartSend(buffer, pipeline.rank() + 1, {1, 2, 3})->Wait();
  }
  EXPECT_EQ(tensor, std::vector<float>(tensor.size(), 42.0f));
  comm::ControlVector control;
  control.loss_sum = world->rank() + 1;
  EXPECT_EQ(ReduceControl(world->all(), control).loss_sum, world->size() * (world->size() + 1) / 2);
}

TEST(MpiCommunicator, AgreementNamesTheFailingRank) {
  const int last = world->size() - 1;
  const absl::Status mine = world->rank() == last ? InputError("no file") : absl::OkStatus();
  const absl::Status agreed = comm::AgreeOnStatus(world->all(), mine);
  EXPECT_EQ(KindOf(agreed), ErrorKind::kInput);
  const std::string prefix = world->size() > 1 ? "rank " + std::to_string(last) + ": " : "";
  EXPECT_EQ(agreed.message(), prefix + "no file");
}

// The same sum twice, with the ranks entering at different times: bitwise equal.
TEST(MpiCommunicator, TimingDoesNotChangeBits) {
  std::vector<float> first;
  for (int round = 0; round < 2; ++round) {
    std::vector<float> values(300001);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = 1.0f / static_cast<float>(1 + world->rank() + i % 1009);
    }
    const auto start = std::chrono::steady_clock::now();
    const auto delay = std::chrono::milliseconds(20 * ((world->rank() + round) % 2));
    while (std::chrono::steady_clock::now() - start < delay) {
    }
    world->all().AllReduce({values.data(), values.size(), DType::kFloat32, -1}, ReduceOp::kSum);
    if (round == 0) first = values;
    EXPECT_EQ(first, values);
  }
}

// Fails the run on rank 1 alone when asked, to prove that one rank's failure is the job's.
TEST(MpiCommunicator, HarnessReportsOneRanksFailure) {
  const char* failing = std::getenv("GRAFT_TEST_FAIL_RANK");
  if (failing == nullptr) failing = "none";
  EXPECT_NE(std::to_string(world->rank()), failing);
}

}  // namespace
}  // namespace graft::testing

int main(int argc, char** argv) {
  auto created = graft::comm::World::Create();
  if (!created.ok()) {
    LOG(ERROR) << created.status();
    return 1;
  }
  graft::comm::World& world = **created;
  graft::testing::world = &world;
  world.all().set_timeout(absl::Seconds(60));
  if (world.rank() != 0) ::testing::GTEST_FLAG(brief) = true;  // only what fails
  ::testing::InitGoogleTest(&argc, argv);
  try {
    int64_t failed = RUN_ALL_TESTS();
    world.all().AllReduce({&failed, 1, graft::comm::DType::kInt64, -1},
                          graft::comm::ReduceOp::kMax);
    return failed == 0 ? 0 : 1;
  } catch (const graft::StatusError& error) {
    LOG(ERROR) << error.what();
    world.all().Abort(1);
    return 1;
  }
}
