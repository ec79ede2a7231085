// Moves tensors between pipeline stages. Every host transfer starts with a 32-byte header that says
// what it is; the receiver says what it expects, and a difference is a bug error that prints both,
// so that two stages whose schedules drifted apart stop at once instead of training on the wrong
// numbers. Device transfers (nccl) carry no header: their group compares number, tag and size of
// each, and the ranks have compared the whole step's plan before.
//
// Used by the pipeline executor. Knows no tensors and no schedule: plain Buffers, and the order is
// the caller's. Sends and receives are posted ahead and waited for later; transfers of one `tensor`
// number between two ranks must be posted in the same order on both sides, transfers of different
// numbers are independent (with nccl: all receives from a rank in the order of its sends).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "comm/communicator.h"

namespace graft::comm {

// What a transfer carries. `tensor` numbers the flows of a plan (boundary and direction, for
// example 2 * boundary + is_gradient); it is the message tag too: 0 .. kMaxTensor.
struct TransferId {
  static constexpr uint32_t kMaxTensor = 14999;
  uint64_t step = 0;
  uint32_t micro_batch = 0;
  uint32_t tensor = 0;
};

// As it travels, little-endian (reliability.md 4.3).
struct StageHeader {
  static constexpr uint32_t kMagic = 0x54465247;  // "GRFT"
  uint32_t magic = kMagic;
  uint32_t plan_hash = 0;
  uint64_t step = 0;
  uint32_t micro_batch = 0;
  uint32_t tensor = 0;
  uint32_t bytes = 0;     // of the payload
  uint32_t checksum = 0;  // crc32c of the 28 bytes before
};
static_assert(sizeof(StageHeader) == 32);

StageHeader MakeStageHeader(uint32_t plan_hash, const TransferId& id, uint32_t bytes);
std::string ToString(const StageHeader& header);
// Bug error that prints both when they differ or the checksum of `found` is wrong.
absl::Status CheckStageHeader(const StageHeader& expected, const StageHeader& found, int from);

class StageLink {
 public:
  // `pipeline` must outlive the link; `plan_hash` = the first four bytes of the plan's hash, equal
  // on all stages.
  StageLink(Communicator& pipeline, uint32_t plan_hash);

  // `data` must live, and not change, until Wait returns. At most 4 GiB - 1 bytes.
  std::unique_ptr<Request> StartSend(Buffer data, int to, const TransferId& id);
  // Wait (and Test) throw kind bug when something else arrives, kind peer when nothing does.
  std::unique_ptr<Request> StartRecv(Buffer data, int from, const TransferId& id);

 private:
  Communicator& pipeline_;
  const uint32_t plan_hash_;
};

}  // namespace graft::comm
