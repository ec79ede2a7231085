// The two targets that read recipes: the file and the command line.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/fields.h"
#include "tests/fuzz/fuzz.h"
#include "trainer/config.h"

namespace graft::fuzz {

// A method with a key of every type; the real ones link LibTorch.
struct AnyMethod {
  std::vector<std::string> sites = {"attn.q"};
  std::string what = "scale";
  int64_t rank = 8;
  double alpha = 16;
  bool bias = false;
  void Visit(FieldVisitor& v) {
    v.TextList({"sites", "roles"}, &sites);
    v.Text({"what", "a choice"}, &what, {"scale", "bias"});
    v.Int({"rank", "a number"}, &rank, 1, 65536);
    v.Real({"alpha", "a real number"}, &alpha, 0, 1e6);
    v.Bool({"bias", "a switch"}, &bias);
  }
};

inline trainer::MethodKeys Methods() {
  return {{"lora"}, [](const std::string& name) -> absl::StatusOr<VisitFunction> {
            if (name != "lora") return RecipeError("recipe: unknown method, known: lora");
            return VisitFunction(
                [method = std::make_shared<AnyMethod>()](FieldVisitor& v) { method->Visit(v); });
          }};
}

// A recipe that is taken can be written and reads back the same.
inline void ReadRecipe(const std::string& yaml, const std::vector<std::string>& overrides,
                       ErrorKind kind) {
  const auto recipe = trainer::ParseRecipe(yaml, "recipe.yaml", overrides, Methods());
  RequireClean(recipe.status(), kind, "");
  if (!recipe.ok()) return;
  const std::string written = trainer::RecipeYaml(*recipe);
  const auto again = trainer::ParseRecipe(written, "recipe.yaml", {}, Methods());
  Require(again.ok(), "what was taken is refused when written again: " + again.status().ToString());
  Require(trainer::RecipeYaml(*again) == written, "what was written reads back differently");
}

}  // namespace graft::fuzz
