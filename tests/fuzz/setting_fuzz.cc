#include "adapters/setting.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace graft;  // NOLINT
  static const fuzz::Folder folder;
  folder.Write("setting.json", fuzz::Text(data, size));
  const auto setting = adapters::ReadSetting(folder.Path("setting.json"));
  fuzz::RequireClean(setting.status(), ErrorKind::kInput, "setting.json");
  if (!setting.ok()) return 0;
  for (const adapters::KeptLayer& layer : setting->keep) {
    fuzz::Require(layer.layer >= 0 && layer.layer < setting->num_layers && !layer.roles.empty(),
                  "a layer that cannot be adapted");
  }
  return 0;
}
