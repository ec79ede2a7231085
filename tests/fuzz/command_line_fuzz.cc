#include "launch/cli.h"

#include "absl/strings/str_split.h"
#include "tests/fuzz/recipe.h"

// The words of a command line, one a line (a word holds no NUL); its overrides go on to a recipe.
int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace graft;  // NOLINT
  std::string text = fuzz::Text(data, size);
  text.resize(std::min(text.size(), text.find('\0')));
  const std::vector<std::string> words = absl::StrSplit(text, '\n');
  std::vector<const char*> argv = {"graft"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  const auto line = launch::ParseCommandLine(
      static_cast<int>(argv.size()), argv.data(),
      {{"train", "fine-tune", true}, {"plan", "dry run", true}, {"inspect", "look", false}});
  fuzz::RequireClean(line.status(), ErrorKind::kUsage, "command line");
  if (!line.ok() || line->overrides.empty()) return 0;
  // An override that has not the form is kind usage, one that does not fit the recipe kind recipe.
  const std::string yaml = "run: {name: demo}\noptim: {lr: 1e-3}\n";
  const auto recipe = trainer::ParseRecipe(yaml, "r.yaml", line->overrides, fuzz::Methods());
  const bool usage = !recipe.ok() && KindOf(recipe.status()) == ErrorKind::kUsage;
  fuzz::ReadRecipe(yaml, line->overrides, usage ? ErrorKind::kUsage : ErrorKind::kRecipe);
  return 0;
}
