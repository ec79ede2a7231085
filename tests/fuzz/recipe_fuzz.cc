#include "tests/fuzz/recipe.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  graft::fuzz::ReadRecipe(graft::fuzz::Text(data, size), {}, graft::ErrorKind::kRecipe);
  return 0;
}
