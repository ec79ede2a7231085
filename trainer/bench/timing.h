// What the measurements of `graft bench` over several ranks share. Collective.
#pragma once

#include <functional>
#include <vector>

#include <nlohmann/json.hpp>

#include "comm/communicator.h"

namespace graft::trainer {

// {"median", "min", "max"} of at least one number.
nlohmann::ordered_json SpreadOf(const std::vector<double>& values);

// A number of each rank, by rank.
std::vector<double> FromAllRanks(comm::Communicator& all, double mine);

// Seconds that `work` takes the slowest rank, all beginning together. All ranks get the same.
double SlowestSeconds(comm::Communicator& all, const std::function<void()>& work);

}  // namespace graft::trainer
