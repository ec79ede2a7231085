#include "tests/fuzz/dataset.h"

// The first shard of the tiny data set. The first byte picks the kind that dataset.json says.
int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace graft;  // NOLINT
  static const fuzz::TinyDatasetFolder folder;
  if (size == 0) return 0;
  folder.WriteHeader(data[0] % 4);
  folder.Write("shard-00000.safetensors", fuzz::Text(data + 1, size - 1));
  fuzz::ReadDataset(folder.path());
  return 0;
}
