#include "trainer/bench/timing.h"

#include <algorithm>

#include "base/median.h"
#include "trainer/stopwatch.h"

namespace graft::trainer {

nlohmann::ordered_json SpreadOf(const std::vector<double>& values) {
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  return {{"median", Median(values)}, {"min", *least}, {"max", *most}};
}

std::vector<double> FromAllRanks(comm::Communicator& all, double mine) {
  std::vector<double> values(static_cast<size_t>(all.size()));
  all.AllGather({&mine, 1, comm::DType::kFloat64},
                {values.data(), values.size(), comm::DType::kFloat64});
  return values;
}

double SlowestSeconds(comm::Communicator& all, const std::function<void()>& work) {
  all.Barrier();
  const Stopwatch clock;
  work();
  const std::vector<double> seconds = FromAllRanks(all, clock.Seconds());
  return *std::max_element(seconds.begin(), seconds.end());
}

}  // namespace graft::trainer
