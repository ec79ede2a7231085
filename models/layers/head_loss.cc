#include "models/layers/head_loss.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "models/device.h"
#include "models/layers/device_rows.h"
#include "models/layers/row_kernels.h"
#include "models/layers/rows.h"

namespace graft::models {
namespace {

constexpr int64_t kChunkRows = 1024;
// Of logits. A GPU reads the whole projection for each chunk and is fast only with many rows.
constexpr int64_t kHostChunkBytes = int64_t{64} << 20, kDeviceChunkBytes = int64_t{512} << 20;

int64_t ChunkRows(const LossHead& head, const torch::Tensor& h) {
  const int64_t bytes = h.is_cpu() ? kHostChunkBytes : kDeviceChunkBytes;
  return std::clamp<int64_t>(bytes / 4 / head.projection.weight().out_features(), 1, kChunkRows);
}

// logits (P, V) float32 -> per-row loss; with `gradient` the logits become softmax - onehot in
// place.
torch::Tensor ChunkLosses(torch::Tensor& logits, const torch::Tensor& ids, bool gradient) {
  if (!UsesHostKernels(logits)) return device::TokenLosses(logits, ids, gradient);
  const int64_t vocabulary = logits.size(1);
  torch::Tensor losses = at::empty({logits.size(0)}, logits.options());
  const int64_t* id = ids.const_data_ptr<int64_t>();
  float* out = losses.data_ptr<float>();
  float* base = logits.data_ptr<float>();
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* values = base + row * vocabulary;
      const float target = values[id[row]];
      out[row] = (gradient ? rows::SoftmaxInPlace(values, vocabulary)
                           : rows::LogSumExp(values, vocabulary)) -
                 target;
      if (gradient) values[id[row]] -= 1.0f;
    }
  });
  return losses;
}

// (P) bool: no logit of the row is larger than that of its target.
torch::Tensor IsRight(const torch::Tensor& logits, const torch::Tensor& ids) {
  if (!UsesHostKernels(logits))
    return logits.gather(1, ids.unsqueeze(1)).squeeze(1).ge(logits.amax(1));
  const int64_t vocabulary = logits.size(1);
  torch::Tensor right = at::empty({logits.size(0)}, torch::kBool);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  const float* base = logits.const_data_ptr<float>();
  bool* out = right.data_ptr<bool>();
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* values = base + row * vocabulary;
      out[row] = values[id[row]] >= rows::Largest(values, vocabulary);
    }
  });
  return right;
}

int64_t CountOf(const LossTargets& targets) {
  return targets.rows.defined() ? targets.rows.size(0) : 0;
}

// Calls body(first, targets, hidden states of the chunk) over the supervised rows.
template <typename Body>
void ForEachChunk(const torch::Tensor& h, const LossTargets& all, const LossHead& head,
                  const Body& body) {
  const int64_t total = CountOf(all), chunk = ChunkRows(head, h);
  for (int64_t first = 0; first < total; first += chunk) {
    const int64_t count = std::min(chunk, total - first);
    const LossTargets part{all.rows.narrow(0, first, count), all.ids.narrow(0, first, count)};
    body(first, part, h.index_select(0, part.rows));
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
                               at::TensorList trained, const LossTargets& all,
                               const LossHead& head) {
    const bool gradient = h.requires_grad();
    std::vector<torch::Tensor> gradients;  // of h, then of `trained`
    if (gradient) {
      gradients.push_back(at::zeros_like(h));
      for (const torch::Tensor& leaf : trained) gradients.push_back(at::zeros_like(leaf));
    }
    // On h's device: reading it would hold the host up.
    torch::Tensor sum = at::zeros({}, h.options().dtype(torch::kFloat64));
    ForEachChunk(h.detach(), all, head,
                 [&](int64_t, const LossTargets& targets, const torch::Tensor& picked) {
                   sum.add_(Chunk(picked, targets, head, gradients));
                 });
    context->save_for_backward(gradients);
    return sum;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dloss) {
    torch::autograd::variable_list gradients = context->get_saved_variables();
    const bool on_host = dloss[0].is_cpu();
    if (!on_host || dloss[0].item<double>() != 1.0) {
      for (torch::Tensor& gradient : gradients) gradient = gradient * dloss[0];
    }
    gradients.resize(gradients.size() + 2);
    return gradients;
  }

 private:
  // Sum of the chunk's losses; its gradients are added to `gradients`, of h and then of what is
  // trained (empty: none are wanted).
  static torch::Tensor Chunk(const torch::Tensor& picked, const LossTargets& targets,
                             const LossHead& head, std::vector<torch::Tensor>& gradients) {
    const bool gradient = !gradients.empty();
    // The norm's own backward serves here too; its graph lives inside this chunk only.
    torch::AutoGradMode with_graph(gradient);
    const torch::Tensor input = picked.detach().requires_grad_(gradient);
    const torch::Tensor normed = head.norm.Forward(input).value;
    at::NoGradGuard no_grad;
    torch::Tensor logits = head.projection.weight().Multiply(normed.detach(), torch::kFloat32);
    const torch::Tensor sum = ChunkLosses(logits, targets.ids, gradient).sum(torch::kFloat64);
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
    gradients[0].index_add_(0, targets.rows, found.back());
    return sum;
  }
};

}  // namespace

torch::Tensor HeadLossSum(const torch::Tensor& h, const LossTargets& targets,
                          const LossHead& head) {
  return HeadLossFunction::apply(h, at::TensorList(TrainedOf(head)), targets, head);
}

TargetResults HeadTargets(const torch::Tensor& h, const LossTargets& all, const LossHead& head) {
  at::NoGradGuard no_grad;
  const int64_t total = CountOf(all);
  TargetResults results{at::empty({total}, h.options().dtype(torch::kFloat32)),
                        at::empty({total}, h.options().dtype(torch::kBool))};
  ForEachChunk(
      h, all, head, [&](int64_t first, const LossTargets& targets, const torch::Tensor& picked) {
        torch::Tensor logits =
            head.projection.weight().Multiply(head.norm.Forward(picked).value, torch::kFloat32);
        const int64_t count = picked.size(0);
        results.losses.narrow(0, first, count).copy_(ChunkLosses(logits, targets.ids, false));
        results.right.narrow(0, first, count).copy_(IsRight(logits, targets.ids));
      });
  return results;
}

torch::Tensor HeadLogits(const torch::Tensor& h, const std::vector<int64_t>& rows,
                         const LossHead& head) {
  at::NoGradGuard no_grad;
  // All rows as they stand need no gathering: a decoding step's.
  bool all = static_cast<int64_t>(rows.size()) == h.size(0);
  for (size_t i = 0; all && i < rows.size(); ++i) all = rows[i] == static_cast<int64_t>(i);
  const torch::Tensor picked = all ? h : h.index_select(0, IndexTensor(rows, h.device()));
  return head.projection.weight().Multiply(head.norm.Forward(picked).value, torch::kFloat32);
}

}  // namespace graft::models
