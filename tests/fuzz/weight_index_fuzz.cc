#include "models/weights/safetensors.h"
#include "tests/fuzz/fuzz.h"

namespace graft::fuzz {
namespace {

// Two shards, "a" in the first, "b" and "c" in the second.
void WriteShards(const Folder& folder) {
  static const float zeros[4] = {};
  const auto tensor = [](const char* name) {
    return models::TensorToWrite{name, models::TensorType::kFloat32, {4}, zeros};
  };
  ThrowIfError(models::WriteSafetensors(folder.Path("1.safetensors"), {tensor("a")}, {}));
  ThrowIfError(
      models::WriteSafetensors(folder.Path("2.safetensors"), {tensor("b"), tensor("c")}, {}));
}

void Read(const std::string& bytes) {
  static const Folder* const folder = [] {
    static const Folder made;
    WriteShards(made);
    return &made;
  }();
  folder->Write("model.safetensors.index.json", bytes);
  const auto weights = models::WeightFolder::Open(folder->path(), {});
  RequireClean(weights.status(), ErrorKind::kInput, "index.json");
  if (!weights.ok()) return;
  for (const std::string& name : (*weights)->names()) {
    Require((*weights)->Has(name), "a name that is not there");
    RequireClean((*weights)->Find(name).status(), ErrorKind::kInput, ".safetensors");
  }
}

}  // namespace
}  // namespace graft::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  graft::fuzz::Read(graft::fuzz::Text(data, size));
  return 0;
}
