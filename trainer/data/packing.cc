#include "trainer/data/packing.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace graft::trainer {
namespace {

// Finds the first row with enough room in logarithmic time: a tree of maxima over the room left.
class RoomTree {
 public:
  RoomTree(std::size_t num_rows, int64_t room)
      : leaves_(std::bit_ceil(num_rows)), room_(2 * leaves_, room) {}

  // Takes `tokens` from the first row that has them and returns the row; one always does.
  std::size_t Take(int64_t tokens) {
    std::size_t node = 1;
    while (node < leaves_) {
      node *= 2;
      if (room_[node] < tokens) ++node;
    }
    const std::size_t row = node - leaves_;
    room_[node] -= tokens;
    for (node /= 2; node > 0; node /= 2)
      room_[node] = std::max(room_[2 * node], room_[2 * node + 1]);
    return row;
  }

 private:
  std::size_t leaves_;
  std::vector<int64_t> room_;
};

// Packs order[begin, end) and appends its rows.
void PackWindow(const std::vector<int64_t>& order, std::size_t begin, std::size_t end,
                const std::vector<int64_t>& lengths, int64_t row_length,
                std::vector<std::vector<int64_t>>* rows) {
  const auto length_at = [&](std::size_t place) {
    return lengths[static_cast<std::size_t>(order[place])];
  };
  std::vector<std::size_t> longest_first(end - begin);
  std::iota(longest_first.begin(), longest_first.end(), begin);
  std::stable_sort(longest_first.begin(), longest_first.end(),
                   [&](std::size_t a, std::size_t b) { return length_at(a) > length_at(b); });
  RoomTree room(end - begin, row_length);
  std::vector<std::vector<std::size_t>> places(end - begin);
  for (const std::size_t place : longest_first) {
    places[room.Take(length_at(place))].push_back(place);
  }
  for (std::vector<std::size_t>& row : places) std::sort(row.begin(), row.end());
  std::erase_if(places, [](const auto& row) { return row.empty(); });
  std::sort(places.begin(), places.end());
  for (const std::vector<std::size_t>& row : places) {
    std::vector<int64_t>& samples = rows->emplace_back();
    for (const std::size_t place : row) samples.push_back(order[place]);
  }
}

}  // namespace

std::vector<std::vector<int64_t>> PackRows(const std::vector<int64_t>& order,
                                           const std::vector<int64_t>& lengths,
                                           int64_t row_length) {
  std::vector<std::vector<int64_t>> rows;
  for (std::size_t begin = 0; begin < order.size(); begin += kPackingWindow) {
    const std::size_t end = std::min<std::size_t>(order.size(), begin + kPackingWindow);
    PackWindow(order, begin, end, lengths, row_length, &rows);
  }
  return rows;
}

}  // namespace graft::trainer
