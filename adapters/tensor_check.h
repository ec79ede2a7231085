// Compares named tensors that came from a file with what is expected and words the mismatches in
// one line. Used by CheckAdapterTensors (whole model) and AdapterSet::Load (one stage). It copies
// nothing.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "absl/status/status.h"

namespace graft::adapters {

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

// The tensor of that name; undefined when there is none.
torch::Tensor FindTensor(const NamedTensors& tensors, const std::string& name);

class TensorCheck {
 public:
  explicit TensorCheck(const NamedTensors& tensors);
  // Returns the tensor, or an undefined one after noting that it is missing, has another shape or
  // holds a value that is not finite.
  torch::Tensor Expect(const std::string& name, const std::vector<int64_t>& shape);
  // Notes every tensor that nothing has expected.
  void RefuseOthers();
  // OK, or error kind input: `origin`: the number of mismatches and the first few.
  absl::Status Result(const std::string& origin) const;

 private:
  void Note(const std::string& mismatch);

  std::map<std::string, torch::Tensor> tensors_;
  std::set<std::string> expected_;
  std::vector<std::string> first_mismatches_;
  int64_t num_mismatches_ = 0;
};

}  // namespace graft::adapters
