#include "tests/fuzz/dataset.h"

// dataset.json beside the two shards of the tiny data set; their hashes are not looked at.
int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace graft;  // NOLINT
  static const fuzz::TinyDatasetFolder folder;
  folder.Write("dataset.json", fuzz::Text(data, size));
  fuzz::ReadDataset(folder.path());
  return 0;
}
