#include "models/weights/safetensors.h"
#include "tests/fuzz/fuzz.h"

namespace graft::fuzz {
namespace {

void Read(const std::string& bytes) {
  static const Folder folder;
  folder.Write("x.safetensors", bytes);
  const auto file = models::SafetensorsFile::Open(folder.Path("x.safetensors"));
  RequireClean(file.status(), ErrorKind::kInput, "x.safetensors");
  if (!file.ok()) return;
  uint64_t sum = 0;  // touches every byte that is promised
  int64_t total = 0;
  for (const auto& [name, tensor] : (*file)->tensors()) {
    Require(tensor.num_elements() * models::TensorTypeSize(tensor.type) == tensor.bytes,
            "bytes that do not fit the shape");
    for (int64_t i = 0; i < tensor.bytes; ++i) sum += tensor.data[i];
    total += tensor.bytes;
    RequireClean((*file)->Find(name).status(), ErrorKind::kInput, "x.safetensors");
  }
  Require(total < (*file)->file_bytes() && sum <= 255 * static_cast<uint64_t>(total),
          "more bytes than the file has");
}

}  // namespace
}  // namespace graft::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  graft::fuzz::Read(graft::fuzz::Text(data, size));
  return 0;
}
