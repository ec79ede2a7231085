#include "adapters/tensor_check.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::adapters {
namespace {

constexpr size_t kMaxListed = 3;

std::string ShapeText(c10::IntArrayRef shape) {
  return absl::StrCat("(", absl::StrJoin(shape.begin(), shape.end(), ", "), ")");
}

}  // namespace

torch::Tensor FindTensor(const NamedTensors& tensors, const std::string& name) {
  for (const auto& [key, tensor] : tensors) {
    if (key == name) return tensor;
  }
  return {};
}

TensorCheck::TensorCheck(const NamedTensors& tensors) : tensors_(tensors.begin(), tensors.end()) {}

torch::Tensor TensorCheck::Expect(const std::string& name, const std::vector<int64_t>& shape) {
  expected_.insert(name);
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    Note(absl::StrCat("missing ", name));
    return {};
  }
  const torch::Tensor& tensor = found->second;
  if (tensor.sizes() != c10::IntArrayRef(shape)) {
    Note(absl::StrCat(name, " has shape ", ShapeText(tensor.sizes()),
                      ", the recipe and model give ", ShapeText(shape)));
    return {};
  }
  if (!at::isfinite(tensor).all().item<bool>()) {
    Note(absl::StrCat(name, " holds values that are not finite"));
    return {};
  }
  return tensor;
}

void TensorCheck::RefuseOthers() {
  for (const auto& [name, tensor] : tensors_) {
    if (expected_.count(name) == 0) {
      Note(absl::StrCat("extra ", Printable(name), " ", ShapeText(tensor.sizes())));
    }
  }
}

absl::Status TensorCheck::Result(const std::string& origin) const {
  if (num_mismatches_ == 0) return absl::OkStatus();
  std::string message =
      absl::StrCat(origin, ": ", num_mismatches_,
                   " of its tensors do not fit: ", absl::StrJoin(first_mismatches_, "; "));
  if (num_mismatches_ > static_cast<int64_t>(first_mismatches_.size())) message += "; ...";
  return InputError(message);
}

void TensorCheck::Note(const std::string& mismatch) {
  ++num_mismatches_;
  if (first_mismatches_.size() < kMaxListed) first_mismatches_.push_back(mismatch);
}

}  // namespace graft::adapters
