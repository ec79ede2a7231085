#include "tests/fuzz/fuzz.h"
#include "trainer/coordinator/transport.h"

// A message between the coordinator of `score` and a worker.
int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace graft;  // NOLINT
  const auto message = trainer::DecodeMessage(fuzz::Text(data, size));
  fuzz::RequireClean(message.status(), ErrorKind::kBug, "");
  if (!message.ok()) return 0;
  const std::string written = trainer::EncodeMessage(*message);
  const auto again = trainer::DecodeMessage(written);
  fuzz::Require(again.ok() && trainer::EncodeMessage(*again) == written,
                "what was written reads back differently");
  return 0;
}
