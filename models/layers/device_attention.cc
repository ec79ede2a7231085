#include "models/layers/device_attention.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <torch/csrc/autograd/autograd.h>

#include "models/device.h"
#include "models/layers/attention_mask.h"

namespace graft::models::device {
namespace {

constexpr int64_t kMaxFlashWidth = 256;  // of a head

// LibTorch's attention adds in a fixed order in the backward pass only where repeatable kernels are
// demanded, not where they are preferred (trainer/device.cc), and demanding them for good would
// refuse operators that have none.
class DemandRepeatable {
 public:
  DemandRepeatable() : preferred_(at::globalContext().deterministicAlgorithmsWarnOnly()) {
    Set(/*warn_only=*/false);
  }
  ~DemandRepeatable() { Set(preferred_); }
  DemandRepeatable(const DemandRepeatable&) = delete;
  DemandRepeatable& operator=(const DemandRepeatable&) = delete;

 private:
  static void Set(bool warn_only) {
    at::Context& context = at::globalContext();
    if (context.deterministicAlgorithms()) context.setDeterministicAlgorithms(true, warn_only);
  }
  const bool preferred_;
};

double ScaleOf(const AttentionShape& shape) {
  return shape.scale > 0 ? static_cast<double>(shape.scale)
                         : 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
}

// (N, heads * d) rows of one segment -> a view (1, heads, rows, d).
torch::Tensor Heads(const torch::Tensor& flat, const Segment& segment, int64_t head_dim) {
  return flat.narrow(0, segment.begin, segment.length)
      .view({1, segment.length, -1, head_dim})
      .transpose(1, 2);
}

// (1, G, keys, d) -> (1, H, keys, d), each key-value head for its group of query heads.
torch::Tensor ForEachQueryHead(const torch::Tensor& x, const AttentionShape& shape) {
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  if (group == 1) return x;
  return x.unsqueeze(2)
      .expand({1, shape.num_kv_heads, group, x.size(2), shape.head_dim})
      .reshape({1, shape.num_heads, x.size(2), shape.head_dim});
}

bool TakesFlash(const torch::Tensor& q, const AttentionShape& shape) {
  const bool is_short = q.scalar_type() == torch::kBFloat16 || q.scalar_type() == torch::kHalf;
  return q.is_cuda() && is_short && shape.bias == nullptr && shape.head_dim % 8 == 0 &&
         shape.head_dim <= kMaxFlashWidth;
}

// What the kernel is told of the segments: where each one ends, a zero in front, (S + 1) int32.
struct FlashSegments {
  FlashSegments(const std::vector<Segment>& segments, torch::Device device) {
    torch::Tensor ends =
        at::empty({static_cast<int64_t>(segments.size()) + 1}, torch::TensorOptions(torch::kInt32));
    int32_t* end = ends.data_ptr<int32_t>();
    *end = 0;
    for (const Segment& segment : segments) {
      *++end = static_cast<int32_t>(segment.begin + segment.length);
      longest = std::max(longest, segment.length);
    }
    cumulative = ToDevice(ends, device);
  }
  torch::Tensor cumulative;
  int64_t longest = 0;
};

torch::Tensor SplitHeads(const torch::Tensor& x, const AttentionShape& shape) {
  return x.view({x.size(0), -1, shape.head_dim});
}

// Keys at a distance of sliding_window and more are hidden.
std::optional<int64_t> WindowLeft(const AttentionShape& shape) {
  return shape.sliding_window > 0 ? std::optional(shape.sliding_window - 1) : std::nullopt;
}

AttentionResult FlashForward(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                             const std::vector<Segment>& segments,
                             const std::vector<Segment>& key_segments,
                             const AttentionShape& shape) {
  const FlashSegments queries(segments, q.device()), keys(key_segments, q.device());
  auto [out, log_sum_exp, random, unused, debug] = at::_flash_attention_forward(
      SplitHeads(q, shape), SplitHeads(k, shape), SplitHeads(v, shape), queries.cumulative,
      keys.cumulative, queries.longest, keys.longest, /*dropout_p=*/0.0, shape.causal,
      /*return_debug_mask=*/false, ScaleOf(shape), WindowLeft(shape));
  return {out.view(q.sizes()), log_sum_exp, {queries.cumulative, keys.cumulative, random, unused}};
}

std::array<torch::Tensor, 3> FlashBackward(const torch::Tensor& dout, const torch::Tensor& q,
                                           const torch::Tensor& k, const torch::Tensor& v,
                                           const AttentionResult& forward,
                                           const std::vector<Segment>& segments,
                                           const std::vector<Segment>& key_segments,
                                           const AttentionShape& shape) {
  const auto longest = [](const std::vector<Segment>& all) {
    int64_t length = 0;
    for (const Segment& segment : all) length = std::max(length, segment.length);
    return length;
  };
  const auto& state = forward.kernel_state;
  const DemandRepeatable repeatable;
  auto [dq, dk, dv] = at::_flash_attention_backward(
      SplitHeads(dout, shape), SplitHeads(q, shape), SplitHeads(k, shape), SplitHeads(v, shape),
      SplitHeads(forward.out, shape), forward.log_sum_exp, state[0], state[1], longest(segments),
      longest(key_segments), /*dropout_p=*/0.0, shape.causal, state[2], state[3], ScaleOf(shape),
      WindowLeft(shape));
  return {dq.view(q.sizes()), dk.view(k.sizes()), dv.view(v.sizes())};
}

}  // namespace

torch::Tensor AttendOne(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const AttentionShape& shape) {
  const ScoreMask mask = MaskOf(q.size(2), k.size(2), shape, q.scalar_type(), q.device());
  return at::scaled_dot_product_attention(q, ForEachQueryHead(k, shape), ForEachQueryHead(v, shape),
                                          mask.added, /*dropout_p=*/0.0, mask.causal,
                                          ScaleOf(shape));
}

AttentionResult AttentionForward(const torch::Tensor& q, const torch::Tensor& k,
                                 const torch::Tensor& v, const std::vector<Segment>& segments,
                                 const std::vector<Segment>& key_segments,
                                 const AttentionShape& shape) {
  if (TakesFlash(q, shape) && q.size(0) > 0)
    return FlashForward(q, k, v, segments, key_segments, shape);
  const int64_t d = shape.head_dim;
  AttentionResult result{at::empty_like(q), torch::Tensor(), {}};
  for (size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].length == 0) continue;
    Heads(result.out, segments[i], d)
        .copy_(AttendOne(Heads(q, segments[i], d), Heads(k, key_segments[i], d),
                         Heads(v, key_segments[i], d), shape));
  }
  return result;
}

std::array<torch::Tensor, 3> AttentionBackward(const torch::Tensor& dout, const torch::Tensor& q,
                                               const torch::Tensor& k, const torch::Tensor& v,
                                               const AttentionResult& forward,
                                               const std::vector<Segment>& segments,
                                               const std::vector<Segment>& key_segments,
                                               const AttentionShape& shape) {
  if (!forward.kernel_state.empty())
    return FlashBackward(dout, q, k, v, forward, segments, key_segments, shape);
  const int64_t d = shape.head_dim;
  // Key segments that no query sees get no gradient.
  torch::Tensor dq = at::zeros_like(q), dk = at::zeros_like(k), dv = at::zeros_like(v);
  for (size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].length == 0) continue;
    torch::AutoGradMode with_graph(true);
    const auto leaf = [d](const torch::Tensor& x, const Segment& segment) {
      return Heads(x, segment, d).detach().requires_grad_();
    };
    const torch::autograd::variable_list inputs = {leaf(q, segments[i]), leaf(k, key_segments[i]),
                                                   leaf(v, key_segments[i])};
    const torch::Tensor out = AttendOne(inputs[0], inputs[1], inputs[2], shape);
    const DemandRepeatable repeatable;
    const auto gradients = torch::autograd::grad({out}, inputs, {Heads(dout, segments[i], d)});
    Heads(dq, segments[i], d).copy_(gradients[0]);
    Heads(dk, key_segments[i], d).copy_(gradients[1]);
    Heads(dv, key_segments[i], d).copy_(gradients[2]);
  }
  return {dq, dk, dv};
}

}  // namespace graft::models::device
