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

class HeadLossFunction : public torch::autograd::Function<HeadLossFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& h,
                               const std::vector<int64_t>& rows, const std::vector<int64_t>& ids,
                               const LossHead& head) {
    const bool gradient = h.requires_grad();
    torch::Tensor dh = gradient ? at::zeros_like(h) : torch::Tensor();
    double sum = 0;
    ForEachChunk(h.detach(), rows, head, [&](int64_t first, const torch::Tensor& picked) {
      sum += Chunk(picked, ids.data() + first, head, gradient, [&](const torch::Tensor& dpicked) {
        const std::vector<int64_t> at_rows(rows.begin() + first,
                                           rows.begin() + first + picked.size(0));
        dh.index_add_(0, torch::tensor(at_rows, torch::kInt64), dpicked);
      });
    });
    if (gradient) context->save_for_backward({dh});
    return torch::tensor(sum, torch::kFloat64);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dloss) {
    const torch::Tensor dh = context->get_saved_variables()[0];
    const double scale = dloss[0].item<double>();
    return {scale == 1.0 ? dh : dh * scale, torch::Tensor(), torch::Tensor(), torch::Tensor()};
  }

 private:
  template <typename Sink>
  static double Chunk(const torch::Tensor& picked, const int64_t* ids, const LossHead& head,
                      bool gradient, const Sink& sink) {
    // The norm's own backward serves here too; its graph lives inside this chunk only.
    torch::AutoGradMode with_graph(gradient);
    const torch::Tensor input = picked.detach().requires_grad_(gradient);
    const torch::Tensor normed = head.norm.Forward(input).value;
    at::NoGradGuard no_grad;
    torch::Tensor logits = head.projection.weight().Multiply(normed.detach(), torch::kFloat32);
    const double sum = ChunkLosses(logits, ids, gradient).sum(torch::kFloat64).item<double>();
    if (gradient) {
      const torch::Tensor dnormed =
          head.projection.weight().MultiplyTransposed(logits, normed.scalar_type());
      sink(torch::autograd::grad({normed}, {input}, {dnormed})[0]);
    }
    return sum;
  }
};

}  // namespace

torch::Tensor HeadLossSum(const torch::Tensor& h, const std::vector<int64_t>& rows,
                          const std::vector<int64_t>& ids, const LossHead& head) {
  return HeadLossFunction::apply(h, rows, ids, head);
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
