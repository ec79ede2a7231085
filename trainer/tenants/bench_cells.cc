#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/text.h"
#include "trainer/tenants/bench.h"

namespace graft::trainer {
namespace {

absl::StatusOr<std::vector<int64_t>> Numbers(const std::vector<std::string>& texts,
                                             const std::string& key) {
  std::vector<int64_t> numbers;
  for (const std::string& text : texts) {
    int64_t number = 0;
    if (!ParseInt(text, &number) || number < 1 || number > (1 << 20)) {
      return RecipeError(absl::StrCat("tenants.", key, ": found `", Printable(text),
                                      "`, must be numbers from 1 to ", 1 << 20));
    }
    numbers.push_back(number);
  }
  if (numbers.empty()) return RecipeError(absl::StrCat("tenants.", key, ": found an empty list"));
  return numbers;
}

}  // namespace

int64_t TenantCell::num_tenants() const {
  if (mix == "same") return 1;
  if (mix == "two") return std::min<int64_t>(2, batch);
  if (mix == "sqrt")
    return static_cast<int64_t>(std::lround(std::ceil(std::sqrt(static_cast<double>(batch)))));
  return mix == "distinct" ? batch : (batch + 1) / 2;
}

int64_t TenantCell::TenantOf(int64_t row) const {
  if (mix != "half_bare") return row % num_tenants();
  return row % 2 == 0 ? row / 2 : -1;
}

absl::StatusOr<std::vector<TenantCell>> TenantCells(const Recipe& recipe,
                                                    const models::ModelConfig& config) {
  const TenantsSection& tenants = recipe.tenants;
  GRAFT_ASSIGN_OR_RETURN(const auto batches, Numbers(tenants.batches, "batches"));
  GRAFT_ASSIGN_OR_RETURN(const auto prompts, Numbers(tenants.prompts, "prompts"));
  GRAFT_ASSIGN_OR_RETURN(const auto answers, Numbers(tenants.new_tokens, "new_tokens"));
  std::vector<TenantCell> cells;
  for (const int64_t batch : batches) {
    for (const std::string& mix : tenants.mixes) {
      for (const int64_t prompt : prompts) {
        for (const int64_t answer : answers) {
          if (answer < 2) {
            return RecipeError("tenants.new_tokens: found 1, the time per token needs at least 2");
          }
          if (prompt + answer > config.longest_sequence()) {
            return RecipeError(absl::StrCat("tenants.prompts: found ", prompt, " with ", answer,
                                            " new tokens, the model has ",
                                            config.longest_sequence(), " positions"));
          }
          cells.push_back({batch, mix, prompt, answer});
        }
      }
    }
  }
  return cells;
}

}  // namespace graft::trainer
