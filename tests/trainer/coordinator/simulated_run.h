// Items, results and fault patterns for tests of the coordinator.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "base/hash.h"
#include "trainer/coordinator/simulation.h"
#include "trainer/coordinator/work_item.h"

namespace graft::testing {

inline const std::string kRunKey(64, 'a');

// Shards of 32 samples x blocks of 4 layers, low blocks dearer, as methods.md 16.2 counts them.
inline std::vector<trainer::WorkItem> MakeItems(int shards, int blocks) {
  std::vector<trainer::WorkItem> items;
  for (int shard = 0; shard < shards; ++shard) {
    for (int block = 0; block < blocks; ++block) {
      trainer::WorkItem item;
      item.kind = "loo";
      item.first_sample = 32 * shard;
      item.num_samples = 32;
      item.first_layer = 4 * block;
      item.num_layers = 4;
      item.cost = 20.0 * (blocks - block) / blocks + 2;
      items.push_back(item);
    }
  }
  return items;
}

// The result of an item: a pure function of it.
inline std::string ResultOf(const trainer::WorkItem& item) {
  const std::string digits = Sha256Hex(trainer::ItemName(item));
  return digits + digits + digits;
}

inline std::vector<std::string> SerialResults(const std::vector<trainer::WorkItem>& items) {
  std::vector<std::string> results;
  for (const trainer::WorkItem& item : items) results.push_back(ResultOf(item));
  return results;
}

inline trainer::SimulationOptions CleanRun(int workers, int shards, int blocks) {
  trainer::SimulationOptions options;
  options.items = MakeItems(shards, blocks);
  options.run_key = kRunKey;
  options.workers.resize(static_cast<size_t>(workers));
  options.compute = [](const trainer::WorkItem& item, int) -> absl::StatusOr<std::string> {
    return ResultOf(item);
  };
  return options;
}

// Half of the workers die, the others stall, leave and come back; the network loses, doubles and
// reorders.
inline void AddFaults(trainer::SimulationOptions* options, uint64_t seed, double run_seconds) {
  std::mt19937_64 random(seed);
  const auto uniform = [&](double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
  };
  options->seed = seed;
  options->network = {.least_delay = 0.001, .most_delay = 3, .loss = 0.1, .doubling = 0.1};
  using Kind = trainer::SimulatedFault::Kind;
  for (size_t i = 0; i < options->workers.size(); ++i) {
    trainer::SimulatedWorker& worker = options->workers[i];
    worker.speed = uniform(0.5, 2);
    const double at = uniform(0, run_seconds);
    if (i % 2 == 0) {
      worker.faults.push_back({at, Kind::kDie, 0});
    } else if (i % 4 == 1) {
      worker.faults.push_back({at, Kind::kStall, uniform(10, 200)});
    } else {
      worker.faults.push_back({at, Kind::kLeave, uniform(1, 200)});
    }
  }
}

}  // namespace graft::testing
