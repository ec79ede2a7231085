// Puts whole samples into rows of a fixed number of tokens (performance.md 2.3): first-fit
// decreasing inside windows of 4,096 consecutive samples. Pure; used by batch_plan.cc.
#pragma once

#include <cstdint>
#include <vector>

namespace graft::trainer {

inline constexpr int64_t kPackingWindow = 4096;

// Rows of sample indices. `order`: samples in the order of the epoch; `lengths[i]`: tokens of
// sample i, at most row_length. A row holds samples of one window, in the order of the epoch; rows
// stand in the order of their first sample.
std::vector<std::vector<int64_t>> PackRows(const std::vector<int64_t>& order,
                                           const std::vector<int64_t>& lengths, int64_t row_length);

}  // namespace graft::trainer
