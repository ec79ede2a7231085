// The middle of measured numbers. Used by the measurements of `graft bench` and by the watch for
// slow ranks.
#pragma once

#include <vector>

namespace graft {

// Of at least one number; of an even count the mean of the two in the middle.
double Median(std::vector<double> values);

}  // namespace graft
