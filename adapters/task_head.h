// The task head of classification and regression, as a part of any method (methods.md 1.3): its
// parameters are trained in float32 beside the method's own, travel with them through optimizer,
// checkpoint and adapter folder, and its hook at the site `head` turns the state of a sample into
// the outputs. Used by whoever chooses a recipe's method. It computes no loss.
//
// Shapes: S samples, D hidden width, C outputs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "adapters/adapter.h"

namespace graft::adapters {

struct TaskHeadSpec {
  std::string module;      // "classifier", "score"
  bool has_dense = false;  // module.dense, tanh, module.out_proj; else module alone, without a bias
  int64_t width = 0;       // D
  int64_t outputs = 0;     // C
  double initializer_range = 0.02;
  bool train = true;     // false: it stays as the model folder has it, or as it was drawn
  double dropout = 0.0;  // before each linear of a head with a dense layer
  int num_layers = 0;    // of the model
};

// The tensors of the head by HF name ("classifier.dense.weight") with their shapes, in init order.
std::vector<ParameterSpec> TaskHeadTensors(const TaskHeadSpec& spec);

// `inner` with the head: everything of the method is `inner`'s; parameters of the head come last,
// named as huggingface/peft names modules_to_save. Fresh values: weights N(0, initializer_range^2),
// biases 0, drawn by counters; a head in the model folder (AttachOptions::stored_head) is kept.
// Merge folds `inner` into the linears; whoever writes the merged folder adds the head's tensors.
std::unique_ptr<Method> WithTaskHead(std::unique_ptr<Method> inner, const TaskHeadSpec& spec);

}  // namespace graft::adapters
