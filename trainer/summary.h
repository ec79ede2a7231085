// The tables that a run shows at its start: which sites a method matched, and how much of the model
// is trained. Text only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "adapters/adapter.h"
#include "models/role.h"

namespace graft::trainer {

// One row per role: sites, layers, widths, parameters.
std::string SiteMatchTable(const adapters::Method& method,
                           const std::vector<models::SiteSpec>& matched);

// "trainable 460,800 of 134,975,808 parameters (0.341 %)". The total has the trained ones in it.
std::string ParameterLine(int64_t trainable, int64_t total);

// "1,234,567".
std::string Grouped(int64_t number);

// "0-3, 7" from rising numbers.
std::string RangesText(const std::vector<int>& numbers);

}  // namespace graft::trainer
