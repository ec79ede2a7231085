#include <cstring>

#include "comm/stage_link.h"
#include "tests/fuzz/fuzz.h"

// 32 bytes from another stage: only those that were expected are taken.
int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace graft;  // NOLINT
  const comm::StageHeader expected = comm::MakeStageHeader(0x12345678, {7, 3, 2}, 4096);
  comm::StageHeader found;
  if (size < sizeof found) return 0;
  std::memcpy(&found, data, sizeof found);
  const absl::Status status = comm::CheckStageHeader(expected, found, 1);
  fuzz::RequireClean(status, ErrorKind::kBug, "from stage 1");
  fuzz::Require(status.ok() == (std::memcmp(&expected, &found, sizeof found) == 0),
                "a foreign header was taken, or the right one refused");
  return 0;
}
