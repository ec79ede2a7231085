#include <vector>

#include "models/weights/safetensors.h"
#include "tests/fuzz/fuzz.h"
#include "trainer/inspect.h"

namespace {

// LoRA of rank 2 on one module of 4 x 3.
void WriteTensors(const graft::fuzz::Folder& folder) {
  using graft::models::TensorType;
  const std::vector<float> ones(8, 1.0f);
  const std::string module = "base_model.model.model.layers.0.self_attn.q_proj";
  graft::ThrowIfError(graft::models::WriteSafetensors(
      folder.Path("adapter_model.safetensors"),
      {{module + ".lora_A.weight", TensorType::kFloat32, {2, 3}, ones.data()},
       {module + ".lora_B.weight", TensorType::kFloat32, {4, 2}, ones.data()}},
      {}));
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace graft;  // NOLINT
  static const fuzz::Folder* const folder = [] {
    static const fuzz::Folder made;
    WriteTensors(made);
    return &made;
  }();
  folder->Write("adapter_config.json", fuzz::Text(data, size));
  const auto text = trainer::DescribeFolder(folder->path());
  fuzz::RequireClean(text.status(), ErrorKind::kInput, folder->path());
  return 0;
}
