#include "models/layers/head_loss.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "models/layers/row_kernels.h"
#include "models/layers/rows.h"

namespace graft::models {
namespace {

constexpr int64_t kChunkRows = 1024;
constexpr int64_t kChunkBytes = int64_t{64} << 20;

int64_t ChunkRows(const LossHead& head) {
  return std::clamp<int64_t>(kChunkBytes / 4 / head.projection.weight().out_features(), 1,
                             kChunkRows);
}

// logits (P, V) float32 -> per-row loss; with `gradient` the logits become softmax - onehot in
// place.
torch::Tensor ChunkLosses(torch::Tensor& logits, const int64_t* ids, bool gradient) {
  const int64_t vocabulary = logits.size(1);
  torch::Tensor losses = at::empty({logits.size(0)}, logits.options());
  float* out = losses.data_ptr<float>();
  float* base = logits.data_ptr<float>();
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* values = base + row * vocabulary;
      const float target = values[ids[row]];
      out[row] = (gradient ? rows::SoftmaxInPlace(values, vocabulary)
                           : rows::LogSumExp(values, vocabulary)) -
                 target;
      if (gradient) values[ids[row]] -= 1.0f;
    }
  });
  return losses;
}

// right[i] = no logit of row i is larger than that of its target.
void MarkRight(const torch::Tensor& logits, const int64_t* ids, bool* right) {
  const int64_t vocabulary = logits.size(1);
  const float* base = logits.const_data_ptr<float>();
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* values = base + row * vocabulary;
      right[row] = values[ids[row]] >= rows::Largest(values, vocabulary);
    }
  });
}

torch::Tensor Select(const torch::Tensor& h, const std::vector<int64_t>& rows) {
  return h.index_select(0, torch::tensor(rows, torch::kInt64));
}

// Calls body(first, hidden states of the chunk) over the supervised rows.
template <typename Body>
void ForEachChunk(const torch::Tensor& h, const std::vector<int64_t>& rows, const LossHead& head,
                  const Body& body) {
  const auto total = static_cast<int64_t>(rows.size()), chunk = ChunkRows(head);
  for (int64_t first = 0; first < total; first += chunk) {
    const int64_t last = std::min(total, first + chunk);
    body(first, Select(h, std::vector<int64_t>(rows.begin() + first, rows.begin() + last)));
  }
}

// The trained tensors of a head: projection, norm weight, norm bias; none of a frozen one.
std::vector<torch::Tensor> TrainedOf(const LossHead& head) {
  std::vector<torch::Tensor> trained;
  for (const torch::Tensor& leaf :
       {head.projection.weight().Leaf(), head.norm.weight, head.norm.bias}) {
    if (leaf.defined() && leaf.requires_grad()) trained.push_back(leaf);
  }
  return trained;
}

class HeadLossFunction : public torch::autograd::Function<HeadLossFunction> {
 public:
  // `trained`: TrainedOf(head), so that autograd knows them.
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& h,
                               at::TensorList trained, const std::vector<int64_t>& rows,
                               const std::vector<int64_t>& ids, const LossHead& head) {
    const bool gradient = h.requires_grad();
    std::vector<torch::Tensor> gradients;  // of h, then of `trained`
    if (gradient) {
      gradients.push_back(at::zeros_like(h));
      for (const torch::Tensor& leaf : trained) gradients.push_back(at::zeros_like(leaf));
    }
    double sum = 0;
    ForEachChunk(h.detach(), rows, head, [&](int64_t first, const torch::Tensor& picked) {
      sum += Chunk(picked, ids.data() + first, head, gradients, [&](const torch::Tensor& dpicked) {
        const std::vector<int64_t> at_rows(rows.begin() + first,
                                           rows.begin() + first + picked.size(0));
        gradients[0].index_add_(0, torch::tensor(at_rows, torch::kInt64), dpicked);
      });
    });
    context->save_for_backward(gradients);
    return torch::tensor(sum, torch::kFloat64);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dloss) {
    torch::autograd::variable_list gradients = context->get_saved_variables();
    const double scale = dloss[0].item<double>();
    if (scale != 1.0) {
      for (torch::Tensor& gradient : gradients) gradient = gradient * scale;
    }
    gradients.resize(gradients.size() + 3);
    return gradients;
  }

 private:
  // `sink` gets the gradient of `picked`; those of what is trained are added to gradients[1, ...).
  template <typename Sink>
  static double Chunk(const torch::Tensor& picked, const int64_t* ids, const LossHead& head,
                      std::vector<torch::Tensor>& gradients, const Sink& sink) {
    const bool gradient = !gradients.empty();
    // The norm's own backward serves here too; its graph lives inside this chunk only.
    torch::AutoGradMode with_graph(gradient);
    const torch::Tensor input = picked.detach().requires_grad_(gradient);
    const torch::Tensor normed = head.norm.Forward(input).value;
    at::NoGradGuard no_grad;
    torch::Tensor logits = head.projection.weight().Multiply(normed.detach(), torch::kFloat32);
    const double sum = ChunkLosses(logits, ids, gradient).sum(torch::kFloat64).item<double>();
    if (!gradient) return sum;
    const torch::Tensor dnormed =
        head.projection.weight().MultiplyTransposed(logits, normed.scalar_type());
    torch::autograd::variable_list inputs = TrainedOf(head);
    if (!inputs.empty()) {
      gradients[1].addmm_(logits.t(), normed.to(torch::kFloat32));
      inputs.erase(inputs.begin());
    }
    inputs.push_back(input);
    const auto found = torch::autograd::grad({normed}, inputs, {dnormed});
    for (size_t i = 0; i + 1 < found.size(); ++i) gradients[2 + i].add_(found[i]);
    sink(found.back());
    return sum;
  }
};

}  // namespace

torch::Tensor HeadLossSum(const torch::Tensor& h, const std::vector<int64_t>& rows,
                          const std::vector<int64_t>& ids, const LossHead& head) {
  return HeadLossFunction::apply(h, at::TensorList(TrainedOf(head)), rows, ids, head);
}

TargetResults HeadTargets(const torch::Tensor& h, const std::vector<int64_t>& rows,
                          const std::vector<int64_t>& ids, const LossHead& head) {
  at::NoGradGuard no_grad;
  const auto total = static_cast<int64_t>(rows.size());
  TargetResults results{at::empty({total}, torch::kFloat32), at::empty({total}, torch::kBool)};
  ForEachChunk(h, rows, head, [&](int64_t first, const torch::Tensor& picked) {
    torch::Tensor logits =
        head.projection.weight().Multiply(head.norm.Forward(picked).value, torch::kFloat32);
    const int64_t* chunk_ids = ids.data() + first;
    results.losses.narrow(0, first, picked.size(0)).copy_(ChunkLosses(logits, chunk_ids, false));
    MarkRight(logits, chunk_ids, results.right.data_ptr<bool>() + first);
  });
  return results;
}

torch::Tensor HeadLogits(const torch::Tensor& h, const std::vector<int64_t>& rows,
                         const LossHead& head) {
  at::NoGradGuard no_grad;
  return head.projection.weight().Multiply(head.norm.Forward(Select(h, rows)).value,
                                           torch::kFloat32);
}

}  // namespace graft::models
