#include "sharding/schedule.h"

#include <map>
#include <tuple>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"

namespace graft::sharding {
namespace {

using ::testing::HasSubstr;

// Powers of two: sums of products with small whole numbers are exact.
constexpr double kForward = 1.0;
constexpr double kBackward = 1.25;

ScheduleShape ShapeOf(ScheduleKind kind, int stages, int chunks, int micro_batches,
                      int frozen_parts = 0) {
  ScheduleShape shape{kind, stages, chunks, micro_batches, {}};
  for (int part = 0; part < stages * chunks; ++part) shape.backward.push_back(part >= frozen_parts);
  return shape;
}

// Each full stage takes kForward / kBackward; a chunk its share.
SimulationInput EqualStages(const ScheduleShape& shape) {
  absl::StatusOr<std::vector<std::vector<Op>>> schedule = BuildSchedule(shape);
  EXPECT_TRUE(schedule.ok()) << schedule.status();
  SimulationInput input;
  input.schedule = *schedule;
  input.stages = shape.stages;
  input.chunks = shape.chunks;
  input.backward = shape.backward;
  const size_t parts = static_cast<size_t>(shape.stages * shape.chunks);
  input.forward_seconds.assign(parts, kForward / shape.chunks);
  input.backward_seconds.assign(parts, kBackward / shape.chunks);
  return input;
}

Simulation MustSimulate(const SimulationInput& input) {
  absl::StatusOr<Simulation> simulation = Simulate(input);
  EXPECT_TRUE(simulation.ok()) << simulation.status();
  return simulation.ok() ? *simulation : Simulation();
}

std::vector<ScheduleShape> AllShapes() {
  std::vector<ScheduleShape> shapes;
  for (int p = 1; p <= 16; ++p) {
    for (int m : {1, 2, 3, 4, 7, 8, 12, 16, 32, 64}) {
      shapes.push_back(ShapeOf(ScheduleKind::kGPipe, p, 1, m));
      shapes.push_back(ShapeOf(ScheduleKind::k1F1B, p, 1, m));
      for (int v : {1, 2, 4}) {
        if (v == 1 || m % p == 0) shapes.push_back(ShapeOf(ScheduleKind::kInterleaved, p, v, m));
      }
    }
  }
  return shapes;
}

std::string Name(const ScheduleShape& shape) {
  return std::string(ScheduleName(shape.kind)) + " p" + std::to_string(shape.stages) + " v" +
         std::to_string(shape.chunks) + " m" + std::to_string(shape.micro_batches);
}

TEST(Schedule, EveryOperationOnceAndBackwardInMicroBatchOrder) {
  for (ScheduleShape shape : AllShapes()) {
    for (int frozen : {0, 1, shape.stages * shape.chunks}) {
      for (int part = 0; part < frozen; ++part) shape.backward[static_cast<size_t>(part)] = false;
      const auto schedule = BuildSchedule(shape);
      ASSERT_TRUE(schedule.ok()) << Name(shape) << schedule.status();
      for (int stage = 0; stage < shape.stages; ++stage) {
        std::map<std::tuple<Pass, int, int>, int> seen;
        std::map<int, int> last_backward;
        for (const Op& op : (*schedule)[static_cast<size_t>(stage)]) {
          ++seen[{op.pass, op.micro_batch, op.chunk}];
          if (op.pass == Pass::kForward) continue;
          EXPECT_EQ(op.micro_batch, last_backward[op.chunk]++) << Name(shape);
        }
        for (const auto& [key, count] : seen) EXPECT_EQ(count, 1) << Name(shape);
        size_t expected = 0;
        for (int chunk = 0; chunk < shape.chunks; ++chunk) {
          const bool backward = shape.backward[static_cast<size_t>(chunk * shape.stages + stage)];
          expected += static_cast<size_t>(shape.micro_batches * (backward ? 2 : 1));
        }
        EXPECT_EQ(seen.size(), expected) << Name(shape);
      }
    }
  }
}

TEST(Schedule, NoDeadlockWithBoundedBuffers) {
  for (const ScheduleShape& shape : AllShapes()) {
    SimulationInput input = EqualStages(shape);
    input.transfer_seconds = 0.125;
    // GPipe and the frozen prefix run ahead of their receivers by at most what the executor lets
    // fly.
    input.buffers = shape.kind == ScheduleKind::k1F1B ? 1 : shape.stages + 2;
    EXPECT_TRUE(Simulate(input).ok()) << Name(shape) << Simulate(input).status();
    const int parts = shape.stages * shape.chunks;
    for (int frozen : {1, parts / 2, parts - 1}) {
      if (frozen < 1) continue;
      ScheduleShape prefix = shape;
      for (int part = 0; part < frozen; ++part) prefix.backward[static_cast<size_t>(part)] = false;
      SimulationInput with_prefix = EqualStages(prefix);
      with_prefix.buffers = shape.stages + 2;
      EXPECT_TRUE(Simulate(with_prefix).ok()) << Name(shape) << " prefix " << frozen;
    }
  }
}

// performance.md 3.1.
TEST(Schedule, StepTimeAndBubbleEqualTheFormulas) {
  for (const ScheduleShape& shape : AllShapes()) {
    const Simulation simulation = MustSimulate(EqualStages(shape));
    const double p = shape.stages, m = shape.micro_batches, v = shape.chunks;
    const double both = kForward + kBackward;
    EXPECT_DOUBLE_EQ(simulation.step_seconds, m * both + (p - 1) * both / v) << Name(shape);
    EXPECT_NEAR(simulation.bubble_fraction, (p - 1) / (v * m + p - 1), 1e-12) << Name(shape);
  }
}

TEST(Schedule, InFlightBounds) {
  for (const ScheduleShape& shape : AllShapes()) {
    const Simulation simulation = MustSimulate(EqualStages(shape));
    const int p = shape.stages, m = shape.micro_batches, v = shape.chunks;
    for (int stage = 0; stage < p; ++stage) {
      const int in_flight = simulation.in_flight[static_cast<size_t>(stage)];
      if (shape.kind == ScheduleKind::kGPipe) {
        EXPECT_EQ(in_flight, m) << Name(shape);
      } else if (v == 1) {
        EXPECT_EQ(in_flight, std::min(m, p - stage)) << Name(shape) << " stage " << stage;
      } else {
        // p (1 + (p-1) / (p v)) micro-batches of v chunks at the first stage, the fullest one.
        EXPECT_LE(in_flight, std::min(m * v, v * p + p - 1)) << Name(shape) << " stage " << stage;
        if (stage == 0 && m > p) {
          EXPECT_EQ(in_flight, v * p + p - 1) << Name(shape);
        }
      }
    }
  }
}

TEST(Schedule, BubblesOfEightStages) {
  auto bubble = [](int m) {
    return MustSimulate(EqualStages(ShapeOf(ScheduleKind::k1F1B, 8, 1, m))).bubble_fraction;
  };
  EXPECT_NEAR(bubble(8), 0.467, 0.0005);
  EXPECT_NEAR(bubble(16), 0.304, 0.0005);
  EXPECT_NEAR(bubble(32), 0.179, 0.0005);
  EXPECT_NEAR(bubble(64), 0.099, 0.0005);
}

TEST(Schedule, FrozenPrefixShortensThePipeline) {
  for (int p = 2; p <= 8; ++p) {
    for (int k = 1; k < p; ++k) {
      for (int m : {1, 4, 16}) {
        SimulationInput input = EqualStages(ShapeOf(ScheduleKind::k1F1B, p, 1, m, k));
        // Run-ahead: the prefix's results are there when the step begins.
        for (int part = 0; part < k; ++part) input.forward_seconds[static_cast<size_t>(part)] = 0;
        EXPECT_DOUBLE_EQ(MustSimulate(input).step_seconds,
                         (m + p - k - 1) * (kForward + kBackward));
        // Without it the first result is k forward passes late.
        for (int part = 0; part < k; ++part) {
          input.forward_seconds[static_cast<size_t>(part)] = kForward;
        }
        EXPECT_DOUBLE_EQ(MustSimulate(input).step_seconds,
                         k * kForward + (m + p - k - 1) * (kForward + kBackward));
      }
    }
  }
}

TEST(Schedule, ForwardOnly) {
  for (int p = 1; p <= 8; ++p) {
    for (int m : {1, 3, 8}) {
      for (int v : {1, 2}) {
        const ScheduleKind kind = v == 1 ? ScheduleKind::kGPipe : ScheduleKind::kInterleaved;
        ScheduleShape shape = ShapeOf(kind, p, v, m, p * v);
        const Simulation simulation = MustSimulate(EqualStages(shape));
        if (v == 1) {
          EXPECT_NEAR(simulation.bubble_fraction, (p - 1.0) / (m + p - 1.0), 1e-12);
        }
        EXPECT_EQ(simulation.in_flight[0], 0);
      }
    }
  }
}

TEST(Schedule, TransfersDelayReceivers) {
  SimulationInput input = EqualStages(ShapeOf(ScheduleKind::k1F1B, 2, 1, 1));
  input.transfer_seconds = 0.5;
  EXPECT_DOUBLE_EQ(MustSimulate(input).step_seconds, 2 * (kForward + kBackward) + 2 * 0.5);
}

TEST(Schedule, SimulatorFindsDeadlocks) {
  SimulationInput input = EqualStages(ShapeOf(ScheduleKind::k1F1B, 2, 1, 2));
  std::swap(input.schedule[1][0], input.schedule[1][1]);  // backward before its forward
  const absl::StatusOr<Simulation> result = Simulate(input);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(KindOf(result.status()), ErrorKind::kBug);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("waits for ever before"));
}

TEST(Schedule, BadShapesAreRecipeErrors) {
  auto kind = [](const ScheduleShape& shape) { return KindOf(BuildSchedule(shape).status()); };
  EXPECT_EQ(kind(ShapeOf(ScheduleKind::kInterleaved, 2, 2, 3)), ErrorKind::kRecipe);
  EXPECT_EQ(kind(ShapeOf(ScheduleKind::k1F1B, 2, 2, 4)), ErrorKind::kRecipe);
  EXPECT_EQ(KindOf(ParseSchedule("zb").status()), ErrorKind::kRecipe);
  EXPECT_EQ(*ParseSchedule("interleaved"), ScheduleKind::kInterleaved);
}

}  // namespace
}  // namespace graft::sharding
