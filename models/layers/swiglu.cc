#include "models/layers/swiglu.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "models/device.h"
#include "models/layers/device_rows.h"
#include "models/layers/rebuilt_state.h"
#include "models/layers/row_kernels.h"
#include "models/layers/rows.h"

namespace graft::models {
namespace {

// Reads gate and up from where the layer keeps them.
class SwiGluState : public RebuiltState {
 public:
  SwiGluState(torch::Tensor gate, torch::Tensor up) : gate_(std::move(gate)), up_(std::move(up)) {}

  torch::Tensor Compute() override {
    if (!UsesHostKernels(gate_)) return device::SwiGlu(gate_, up_);
    torch::Tensor y = at::empty_like(gate_);
    const int64_t width = gate_.size(1);
    rows::ParallelRows(gate_.size(0), width, [&](int64_t begin, int64_t end) {
      rows::RowReader gate(gate_), up(up_);
      rows::RowWriter out(y);
      for (int64_t row = begin; row < end; ++row) {
        rows::SwiGlu(gate.Read(row), up.Read(row), out.Room(row), width);
        out.Store(row);
      }
    });
    return y;
  }

  torch::autograd::variable_list Backward(const torch::Tensor& dy) {
    Release();
    if (!UsesHostKernels(gate_)) {
      const auto [dgate, dup] = device::SwiGluBackward(gate_, up_, dy);
      return {dgate, dup, torch::Tensor()};
    }
    torch::Tensor dgate = at::empty_like(gate_), dup = at::empty_like(up_);
    const int64_t width = gate_.size(1);
    rows::ParallelRows(gate_.size(0), width, [&](int64_t begin, int64_t end) {
      rows::RowReader gate(gate_), up(up_), grad(dy);
      rows::RowWriter gate_out(dgate), up_out(dup);
      for (int64_t row = begin; row < end; ++row) {
        rows::SwiGluBackward(gate.Read(row), up.Read(row), grad.Read(row), gate_out.Room(row),
                             up_out.Room(row), width);
        gate_out.Store(row);
        up_out.Store(row);
      }
    });
    return {dgate, dup, torch::Tensor()};
  }

 private:
  torch::Tensor gate_, up_;
};

class SwiGluFunction : public torch::autograd::Function<SwiGluFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context,
                               const torch::Tensor& /*gate*/, const torch::Tensor& /*up*/,
                               const std::shared_ptr<SwiGluState>& state) {
    SaveState(context, state);
    return state->Compute();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dy) {
    return SavedState<SwiGluState>(context).Backward(dy[0].contiguous());
  }
};

}  // namespace

SiteInput SwiGlu(const torch::Tensor& gate, const torch::Tensor& up) {
  auto state = std::make_shared<SwiGluState>(gate.detach(), up.detach());
  torch::Tensor y = SwiGluFunction::apply(gate, up, state);
  return {y, state};
}

}  // namespace graft::models
