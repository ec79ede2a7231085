#include "base/hash.h"
#include "sharding/manifest.h"
#include "tests/fuzz/fuzz.h"

namespace graft::fuzz {
namespace {

// With the right hash of itself, where it has a place for one: else no damage would get past it.
std::string WithHash(std::string text) {
  const std::string key = "\n \"self_sha256\": \"";
  const std::size_t at = text.find(key);
  if (at == std::string::npos || text.size() < at + key.size() + 64) return text;
  text.replace(at + key.size(), 64, std::string(64, '0'));
  return text.replace(at + key.size(), 64, Sha256Hex(text));
}

void Read(const std::string& text) {
  const auto manifest = sharding::ParseManifest(text, "manifest.json");
  RequireClean(manifest.status(), ErrorKind::kInput, "manifest.json");
  if (!manifest.ok()) return;
  const std::string written = sharding::ManifestText(*manifest);
  const auto again = sharding::ParseManifest(written, "manifest.json");
  Require(again.ok(), "what was taken is refused when written again: " + again.status().ToString());
  Require(sharding::ManifestText(*again) == written, "what was written reads back differently");
}

}  // namespace
}  // namespace graft::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const std::string text = graft::fuzz::Text(data, size);
  graft::fuzz::Read(text);
  graft::fuzz::Read(graft::fuzz::WithHash(text));
  return 0;
}
