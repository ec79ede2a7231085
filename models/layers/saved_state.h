// Carries a C++ object from a Function's forward to its backward.
#pragma once

#include <memory>

#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>

namespace graft::models {

template <typename T>
struct StateHolder : torch::CustomClassHolder {
  explicit StateHolder(std::shared_ptr<T> s) : state(std::move(s)) {}
  std::shared_ptr<T> state;
};

template <typename T>
void SaveState(torch::autograd::AutogradContext* context, std::shared_ptr<T> state) {
  context->saved_data["state"] =
      c10::IValue::make_capsule(c10::make_intrusive<StateHolder<T>>(std::move(state)));
}

template <typename T>
T& SavedState(torch::autograd::AutogradContext* context) {
  return *static_cast<StateHolder<T>*>(context->saved_data["state"].toCapsule().get())->state;
}

}  // namespace graft::models
