#include "comm/local_communicator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <tuple>

#include "absl/time/clock.h"
#include "base/status.h"
#include "tests/comm/comm_contract.h"
#include "tests/testing/run_ranks.h"

namespace graft::testing {
namespace {

using comm::Buffer;
using comm::Communicator;
using comm::DType;
using comm::LocalFaults;
using comm::ReduceOp;

std::vector<ContractCase> AllCases() {
  std::vector<ContractCase> cases = CommonContract();
  cases.insert(cases.end(), HostContract().begin(), HostContract().end());
  return cases;
}

class LocalContract : public ::testing::TestWithParam<std::tuple<ContractCase, int>> {};

TEST_P(LocalContract, Holds) {
  const ContractMemory memory;
  const ContractCase contract_case = std::get<0>(GetParam());
  RunRanks(std::get<1>(GetParam()), [&](Communicator& world) {
    contract_case.run(ContractContext{world, memory});
  });
}

INSTANTIATE_TEST_SUITE_P(Threads, LocalContract,
                         ::testing::Combine(::testing::ValuesIn(AllCases()),
                                            ::testing::Values(1, 2, 3, 4, 8)),
                         [](const auto& row) {
                           return std::string(std::get<0>(row.param).name) +
                                  std::to_string(std::get<1>(row.param)) + "Ranks";
                         });

Buffer Of(std::vector<float>* values) {
  return {values->data(), values->size(), DType::kFloat32, -1};
}

RunRanksOptions With(const std::shared_ptr<LocalFaults>& faults, absl::Duration timeout) {
  RunRanksOptions options;
  options.faults = faults;
  options.timeout = timeout;
  return options;
}

TEST(LocalFaults, LargeSendsWaitForTheReceiver) {
  RunRanks(2, [](Communicator& world) {
    std::vector<float> data(100000);
    if (world.rank() == 0) {
      auto send = world.StartSend(Of(&data), 1, 0);
      EXPECT_FALSE(send->Test()) << "code that needs buffered sends must fail under threads too";
      world.Barrier();
      send->Wait();
    } else {
      world.Barrier();
      world.Recv(Of(&data), 0, 0);
    }
  });
}

TEST(LocalFaults, DifferentCountsAreABug) {
  const absl::Status error = ErrorOf([] {
    RunRanks(2, [](Communicator& world) {
      std::vector<float> data(4 + world.rank());
      world.AllReduce(Of(&data), ReduceOp::kSum);
    });
  });
  EXPECT_EQ(KindOf(error), ErrorKind::kBug) << error;
}

TEST(LocalFaults, DroppedMessageIsAPeerError) {
  auto faults = std::make_shared<LocalFaults>();
  faults->Drop(0, 1, 1);
  const absl::Status error = ErrorOf([&] {
    RunRanks(
        2,
        [](Communicator& world) {
          std::vector<float> data(3);
          for (int message = 0; message < 2; ++message) {
            if (world.rank() == 0) world.Send(Of(&data), 1, 0);
            if (world.rank() == 1) {
              world.Recv(Of(&data), 0, 0);
              EXPECT_EQ(message, 0) << "the second message was to be lost";
            }
          }
          world.Barrier();
        },
        With(faults, absl::Milliseconds(300)));
  });
  EXPECT_EQ(KindOf(error), ErrorKind::kPeer) << error;
}

TEST(LocalFaults, CorruptedMessageDiffersInOneBit) {
  auto faults = std::make_shared<LocalFaults>();
  faults->Corrupt(0, 1);
  RunRanks(
      2,
      [](Communicator& world) {
        const std::vector<float> original(5, 1.0f);
        std::vector<float> data = original;
        if (world.rank() == 0) world.Send(Of(&data), 1, 0);
        if (world.rank() == 0) return;
        world.Recv(Of(&data), 0, 0);
        int flipped = 0;
        for (std::size_t i = 0; i < data.size(); ++i) {
          uint32_t a, b;
          std::memcpy(&a, &data[i], 4);
          std::memcpy(&b, &original[i], 4);
          flipped += __builtin_popcount(a ^ b);
        }
        EXPECT_EQ(flipped, 1);
      },
      With(faults, absl::Seconds(10)));
}

TEST(LocalFaults, KilledRankStopsAllOthers) {
  for (const int killed : {0, 2}) {
    auto faults = std::make_shared<LocalFaults>();
    faults->Kill(killed, 40);
    std::atomic<int> ended_by_peer_error{0};
    const absl::Status error = ErrorOf([&] {
      RunRanks(
          4,
          [&](Communicator& world) {
            auto part = world.Split(0, world.rank(), "part");
            try {
              for (int i = 0; i < 100; ++i) part->Barrier();
            } catch (const StatusError& peer) {
              if (KindOf(peer.status()) == ErrorKind::kPeer) ++ended_by_peer_error;
              throw;
            }
          },
          With(faults, absl::Seconds(30)));
    });
    EXPECT_EQ(KindOf(error), ErrorKind::kPeer);
    EXPECT_NE(std::string(error.message()).find("rank " + std::to_string(killed)),
              std::string::npos)
        << error;
    EXPECT_EQ(ended_by_peer_error, 4);
  }
}

TEST(LocalFaults, DelayedRankIsWaitedFor) {
  auto faults = std::make_shared<LocalFaults>();
  faults->Delay(1, absl::Milliseconds(30));
  RunRanks(
      2,
      [](Communicator& world) {
        std::vector<float> data(3, 1.0f);
        world.AllReduce(Of(&data), ReduceOp::kSum);
        EXPECT_EQ(data, std::vector<float>(3, 2.0f));
        if (world.rank() == 0) {
          EXPECT_GE(world.blocked_seconds(), 0.02);
        }
      },
      With(faults, absl::Seconds(10)));
}

TEST(RunRanks, FirstFailureComesThroughAndNobodyHangs) {
  const auto start = std::chrono::steady_clock::now();
  const absl::Status error = ErrorOf([] {
    RunRanks(4, [](Communicator& world) {
      if (world.rank() == 3) throw StatusError(InputError("broken file"));
      world.Barrier();
      world.Barrier();
    });
  });
  EXPECT_EQ(error.message(), "broken file");
  EXPECT_EQ(KindOf(error), ErrorKind::kInput);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST(RunRanks, RankThatReturnsEarlyIsNotWaitedFor) {
  const auto start = std::chrono::steady_clock::now();
  const absl::Status error = ErrorOf([] {
    RunRanks(2, [](Communicator& world) {
      if (world.rank() == 1) return;
      int64_t value = 0;
      world.Recv({&value, 1, DType::kInt64, -1}, 1, 0);
    });
  });
  EXPECT_EQ(KindOf(error), ErrorKind::kPeer);
  EXPECT_NE(std::string(error.message()).find("rank 1 has left"), std::string::npos) << error;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST(RunRanks, WhatARankSentBeforeItReturnedArrives) {
  RunRanks(2, [](Communicator& world) {
    int64_t value = world.rank();
    if (world.rank() == 1) world.Send({&value, 1, DType::kInt64, -1}, 0, 0);
    if (world.rank() == 1) return;
    absl::SleepFor(absl::Milliseconds(50));
    world.Recv({&value, 1, DType::kInt64, -1}, 1, 0);
    EXPECT_EQ(value, 1);
  });
}

}  // namespace
}  // namespace graft::testing
