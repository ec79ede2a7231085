#include "adapters/adapter.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "adapters/peft_config.h"
#include "adapters/tensor_check.h"
#include "base/status.h"

namespace graft::adapters {

int64_t Method::CountParameters(const std::vector<models::SiteSpec>& matched) const {
  int64_t count = 0;
  for (const ParameterSpec& parameter : Parameters(matched)) {
    count += c10::multiply_integers(parameter.shape);
  }
  return count;
}

absl::StatusOr<FolderContent> Method::AsPeft(
    const std::vector<models::SiteSpec>& /*matched*/, const PeftContext& /*context*/,
    std::vector<std::pair<std::string, torch::Tensor>> /*parameters*/) const {
  return RecipeError(absl::StrCat("export.as: found peft with method ", name(),
                                  ", which needs or has no other form; allowed: own"));
}

absl::Status Method::Merge(const models::SiteSpec& site,
                           const std::vector<std::pair<std::string, torch::Tensor>>& /*tensors*/,
                           torch::Tensor* /*weight*/, torch::Tensor* /*bias*/) const {
  return RecipeError(absl::StrCat("export.merge: method `", name(), "` at ", site.module,
                                  " does not merge into the model's weights"));
}

absl::StatusOr<LowRankEdit> Method::LowRankAt(
    const models::SiteSpec& site,
    const std::vector<std::pair<std::string, torch::Tensor>>& /*parameters*/) const {
  return RecipeError(absl::StrCat("adapter.method: found `", name(), "` at ", site.module,
                                  ", scoring needs lora or fanlora"));
}

absl::Status CheckAdapterTensors(const Method& method, const std::vector<models::SiteSpec>& matched,
                                 const std::vector<std::pair<std::string, torch::Tensor>>& tensors,
                                 const std::string& origin) {
  TensorCheck check(tensors);
  for (const ParameterSpec& parameter : method.Parameters(matched)) {
    check.Expect(parameter.name, parameter.shape);
  }
  check.RefuseOthers();
  return check.Result(origin);
}

}  // namespace graft::adapters
