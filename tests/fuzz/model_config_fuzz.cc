#include "models/model_config.h"
#include "models/weights/expected_tensors.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace graft;  // NOLINT
  const auto config = models::ParseModelConfig(fuzz::Text(data, size), "config.json");
  fuzz::RequireClean(config.status(), ErrorKind::kInput, "config.json");
  if (!config.ok()) return 0;
  fuzz::Require(config->longest_sequence() > 0, "no room for a token");
  for (const auto& [name, shape] : models::ExpectedTensors(*config)) {
    for (const int64_t length : shape) fuzz::Require(length > 0, "an empty tensor " + name);
  }
  return 0;
}
