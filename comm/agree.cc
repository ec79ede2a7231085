#include "comm/agree.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::comm {
namespace {

constexpr int32_t kOk = -1;

std::vector<int64_t> AllGatherNumber(Communicator& comm, int64_t mine) {
  std::vector<int64_t> all(comm.size());
  comm.AllGather({&mine, 1, DType::kInt64, -1}, {all.data(), all.size(), DType::kInt64, -1});
  return all;
}

}  // namespace

absl::Status AgreeOnStatus(Communicator& comm, const absl::Status& mine) {
  if (comm.size() == 1) return mine;
  const std::vector<int64_t> kinds =
      AllGatherNumber(comm, mine.ok() ? kOk : static_cast<int64_t>(KindOf(mine)));
  const auto failed =
      std::find_if(kinds.begin(), kinds.end(), [](int64_t kind) { return kind != kOk; });
  if (failed == kinds.end()) return absl::OkStatus();
  const int rank = static_cast<int>(failed - kinds.begin());
  const std::string message = BroadcastString(comm, std::string(mine.message()), rank);
  return MakeError(static_cast<ErrorKind>(*failed), absl::StrCat("rank ", rank, ": ", message));
}

std::vector<std::string> AllGatherStrings(Communicator& comm, const std::string& mine) {
  const std::vector<int64_t> lengths = AllGatherNumber(comm, static_cast<int64_t>(mine.size()));
  const auto slot = static_cast<std::size_t>(*std::max_element(lengths.begin(), lengths.end()));
  std::vector<std::string> strings(comm.size());
  if (slot == 0) return strings;
  std::vector<char> padded(slot, '\0');
  if (!mine.empty()) std::memcpy(padded.data(), mine.data(), mine.size());
  std::vector<char> all(slot * comm.size());
  comm.AllGather({padded.data(), slot, DType::kUint8, -1},
                 {all.data(), all.size(), DType::kUint8, -1});
  for (int r = 0; r < comm.size(); ++r) {
    strings[r].assign(all.data() + slot * r, static_cast<std::size_t>(lengths[r]));
  }
  return strings;
}

std::string BroadcastString(Communicator& comm, const std::string& value, int root) {
  int64_t length = static_cast<int64_t>(value.size());
  comm.Broadcast({&length, 1, DType::kInt64, -1}, root);
  std::string text = comm.rank() == root ? value : std::string(length, '\0');
  comm.Broadcast({text.data(), text.size(), DType::kUint8, -1}, root);
  return text;
}

int FirstDifferingRank(Communicator& comm, const std::string& mine) {
  const std::vector<std::string> all = AllGatherStrings(comm, mine);
  for (int r = 1; r < comm.size(); ++r) {
    if (all[r] != all[0]) return r;
  }
  return -1;
}

}  // namespace graft::comm
