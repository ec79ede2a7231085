#include "models/layers/trained_matrix.h"

#include <ATen/ATen.h>

namespace graft::models {

torch::Tensor TrainedMatrix::Matrix() const {
  const torch::Tensor matrix = stored_in_out_ ? leaf_.narrow(1, begin_, rows_).t() : leaf_;
  return matrix.to(dtype_);
}

torch::Tensor TrainedMatrix::Multiply(const torch::Tensor& x, torch::Dtype result) const {
  return at::mm(x.to(dtype_), Matrix().t()).to(result);
}

torch::Tensor TrainedMatrix::MultiplyTransposed(const torch::Tensor& dy,
                                                torch::Dtype result) const {
  return at::mm(dy.to(dtype_), Matrix()).to(result);
}

torch::Tensor TrainedMatrix::Rows(const torch::Tensor& indices) const {
  return at::embedding(leaf_, indices, padding_row_).to(dtype_);
}

}  // namespace graft::models
