#include "trainer/coordinator/journal.h"

#include <cstring>

#include "comm/crc32c.h"
#include "tests/fuzz/fuzz.h"

namespace graft::fuzz {
namespace {

constexpr std::size_t kHeaderBytes = 80;

// With the right checksum in every record, else no damage would get past it.
std::string WithChecksums(std::string file) {
  for (std::size_t at = kHeaderBytes; at + 8 <= file.size();) {
    uint32_t length = 0;
    std::memcpy(&length, file.data() + at, sizeof length);
    if (length > file.size() - at - 8) break;
    const uint32_t checksum = comm::Crc32c(file.data() + at + 8, length);
    std::memcpy(file.data() + at + 4, &checksum, sizeof checksum);
    at += 8 + length;
  }
  return file;
}

void Read(const std::string& bytes) {
  static const Folder folder;
  const std::string key(64, 'a');
  folder.Write("journal.bin", bytes);
  int64_t results = 0, start = 0;
  {
    const auto journal = trainer::Journal::Open(folder.path(), key);
    RequireClean(journal.status(), ErrorKind::kIo, "journal.bin");
    if (!journal.ok()) return;
    results = (*journal)->num_results();
    start = (*journal)->start();
  }
  const auto again = trainer::Journal::Open(folder.path(), key);
  Require(again.ok(), "what was taken is refused at the next start: " + again.status().ToString());
  Require((*again)->num_results() == results && (*again)->start() == start + 1,
          "the next start reads other results");
}

}  // namespace
}  // namespace graft::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const std::string bytes = graft::fuzz::Text(data, size);
  graft::fuzz::Read(bytes);
  graft::fuzz::Read(graft::fuzz::WithChecksums(bytes));
  return 0;
}
