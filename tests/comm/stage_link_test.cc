#include "comm/stage_link.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/status.h"
#include "tests/comm/comm_contract.h"
#include "tests/testing/run_ranks.h"

namespace graft::comm {
namespace {

using testing::ErrorOf;
using testing::RunRanks;
using testing::RunRanksOptions;

constexpr uint32_t kPlan = 0xABCD1234;

Buffer Of(std::vector<float>* values) {
  return {values->data(), values->size(), DType::kFloat32, -1};
}

TEST(StageHeader, LiesInMemoryAsSpecified) {
  const StageHeader header = MakeStageHeader(0x01020304, {0x1122334455667788, 9, 5}, 77);
  const auto* bytes = reinterpret_cast<const unsigned char*>(&header);
  EXPECT_EQ(std::memcmp(bytes, "GRFT", 4), 0);
  EXPECT_EQ(bytes[4], 0x04);
  EXPECT_EQ(bytes[8], 0x88);
  EXPECT_EQ(bytes[15], 0x11);
  EXPECT_EQ(bytes[16], 9);
  EXPECT_EQ(bytes[20], 5);
  EXPECT_EQ(bytes[24], 77);
}

TEST(StageHeader, EveryFieldAndEveryBitIsCompared) {
  const StageHeader expected = MakeStageHeader(kPlan, {7, 2, 4}, 128);
  EXPECT_TRUE(CheckStageHeader(expected, expected, 0).ok());
  for (std::size_t bit = 0; bit < 8 * sizeof(StageHeader); ++bit) {
    StageHeader found = expected;
    reinterpret_cast<unsigned char*>(&found)[bit / 8] ^= 1u << (bit % 8);
    EXPECT_EQ(KindOf(CheckStageHeader(expected, found, 0)), ErrorKind::kBug) << "bit " << bit;
  }
}

TEST(StageLink, MovesMicroBatchesBothWaysWithReceivesPostedAhead) {
  constexpr int kMicroBatches = 5;
  constexpr std::size_t kCount = 3000;  // payload larger than what the backend buffers
  RunRanks(3, [](Communicator& pipeline) {
    StageLink link(pipeline, kPlan);
    const int rank = pipeline.rank();
    const int last = pipeline.size() - 1;
    std::vector<std::vector<float>> forward(kMicroBatches, std::vector<float>(kCount));
    std::vector<std::vector<float>> backward = forward;
    std::vector<std::unique_ptr<Request>> arriving(kMicroBatches);
    std::vector<std::unique_ptr<Request>> leaving;
    for (uint32_t m = 0; m < kMicroBatches; ++m) {
      if (rank > 0) arriving[m] = link.StartRecv(Of(&forward[m]), rank - 1, {1, m, 0});
    }
    for (uint32_t m = 0; m < kMicroBatches; ++m) {
      if (rank == 0) forward[m].assign(kCount, m + 1.0f);
      if (rank > 0) arriving[m]->Wait();
      EXPECT_EQ(forward[m], std::vector<float>(kCount, m + 1.0f));
      if (rank < last) leaving.push_back(link.StartSend(Of(&forward[m]), rank + 1, {1, m, 0}));
      if (rank == last) backward[m].assign(kCount, -1.0f - m);
      if (rank < last) link.StartRecv(Of(&backward[m]), rank + 1, {1, m, 1})->Wait();
      EXPECT_EQ(backward[m], std::vector<float>(kCount, -1.0f - m));
      if (rank > 0) leaving.push_back(link.StartSend(Of(&backward[m]), rank - 1, {1, m, 1}));
    }
    for (auto& request : leaving) request->Wait();
  });
}

TEST(StageLink, EmptyTensorArrives) {
  RunRanks(2, [](Communicator& pipeline) {
    StageLink link(pipeline, kPlan);
    std::vector<float> empty;
    if (pipeline.rank() == 0) link.StartSend(Of(&empty), 1, {1, 0, 0})->Wait();
    if (pipeline.rank() == 1) {
      auto receive = link.StartRecv(Of(&empty), 0, {1, 0, 0});
      while (!receive->Test()) {
      }
    }
  });
}

// What the sender says and what the receiver expects differ: bug error with both headers.
struct Difference {
  const char* name;
  uint32_t plan;
  TransferId id;
  std::size_t count;
  const char* sent;
};

class StageLinkMismatch : public ::testing::TestWithParam<Difference> {};

TEST_P(StageLinkMismatch, IsABugThatShowsBothHeaders) {
  const Difference sent = GetParam();
  const absl::Status error = ErrorOf([&] {
    RunRanks(2, [&](Communicator& pipeline) {
      if (pipeline.rank() == 0) {
        std::vector<float> data(sent.count);
        StageLink(pipeline, sent.plan).StartSend(Of(&data), 1, sent.id)->Wait();
      } else {
        std::vector<float> data(10);
        StageLink(pipeline, kPlan).StartRecv(Of(&data), 0, {3, 4, 2})->Wait();
      }
    });
  });
  EXPECT_EQ(KindOf(error), ErrorKind::kBug) << error;
  const std::string text(error.message());
  EXPECT_NE(text.find("step 3, micro-batch 4, tensor 2, bytes 40"), std::string::npos) << text;
  EXPECT_NE(text.find(sent.sent), std::string::npos) << text;
}

INSTANTIATE_TEST_SUITE_P(
    Fields, StageLinkMismatch,
    ::testing::Values(Difference{"Plan", 0x5u, {3, 4, 2}, 10, "plan 00000005"},
                      Difference{"Step", kPlan, {4, 4, 2}, 10, "step 4, micro-batch 4"},
                      Difference{"MicroBatch", kPlan, {3, 5, 2}, 10, "step 3, micro-batch 5"},
                      Difference{"Bytes", kPlan, {3, 4, 2}, 11, "bytes 44"}),
    [](const auto& row) { return std::string(row.param.name); });

TEST(StageLink, CorruptedHeaderIsABug) {
  RunRanksOptions options;
  options.faults = std::make_shared<LocalFaults>();
  options.faults->Corrupt(0, 1);  // the header is the first message
  const absl::Status error = ErrorOf([&] {
    RunRanks(
        2,
        [](Communicator& pipeline) {
          StageLink link(pipeline, kPlan);
          std::vector<float> data(10);
          if (pipeline.rank() == 0) link.StartSend(Of(&data), 1, {1, 1, 1})->Wait();
          if (pipeline.rank() == 1) link.StartRecv(Of(&data), 0, {1, 1, 1})->Wait();
        },
        options);
  });
  EXPECT_EQ(KindOf(error), ErrorKind::kBug) << error;
}

TEST(StageLink, LostPayloadIsAPeerError) {
  RunRanksOptions options;
  options.timeout = absl::Milliseconds(300);
  options.faults = std::make_shared<LocalFaults>();
  options.faults->Drop(0, 1, 1);  // header, then payload
  const absl::Status error = ErrorOf([&] {
    RunRanks(
        2,
        [](Communicator& pipeline) {
          StageLink link(pipeline, kPlan);
          std::vector<float> data(10);
          if (pipeline.rank() == 0) link.StartSend(Of(&data), 1, {1, 1, 1})->Wait();
          if (pipeline.rank() == 1) link.StartRecv(Of(&data), 0, {1, 1, 1})->Wait();
          pipeline.Barrier();
        },
        options);
  });
  EXPECT_EQ(KindOf(error), ErrorKind::kPeer) << error;
}

}  // namespace
}  // namespace graft::comm
