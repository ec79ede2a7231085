#include "models/layers/attention.h"

#include <algorithm>
#include <limits>
#include <optional>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "models/layers/frozen_linear.h"

namespace graft::models {
namespace {

// Consecutive segments of one length run as one batch of the attention kernel.
struct Block {
  int64_t begin = 0, rows = 0, length = 0;
};

std::vector<Block> Blocks(const std::vector<Segment>& segments) {
  std::vector<Block> blocks;
  for (const Segment& segment : segments) {
    if (segment.length == 0) continue;
    if (!blocks.empty() && blocks.back().length == segment.length) {
      blocks.back().rows += segment.length;
    } else {
      blocks.push_back({segment.begin, segment.length, segment.length});
    }
  }
  return blocks;
}

// (rows, heads * head_dim) -> a view (rows / length, heads, length, head_dim).
torch::Tensor Heads(const torch::Tensor& flat, const Block& block, int64_t heads,
                    int64_t head_dim) {
  return flat.narrow(0, block.begin, block.rows)
      .view({block.rows / block.length, block.length, heads, head_dim})
      .transpose(1, 2);
}

// Additive mask for the last `num_queries` of `num_keys` positions; nothing when the kernel's own
// causal mask says the same.
std::optional<torch::Tensor> WindowMask(int64_t num_queries, int64_t num_keys, int64_t window,
                                        torch::Dtype dtype) {
  const bool causal_alone = num_queries == num_keys && (window == 0 || num_keys <= window);
  const bool sees_all = num_queries == 1 && (window == 0 || num_keys <= window);
  if (causal_alone || sees_all) return std::nullopt;
  const torch::Tensor query = at::arange(num_keys - num_queries, num_keys).unsqueeze(1);
  const torch::Tensor key = at::arange(num_keys).unsqueeze(0);
  torch::Tensor hidden = key.gt(query);
  if (window > 0) hidden = hidden.logical_or(key.le(query - window));
  return at::zeros({num_queries, num_keys}, torch::dtype(dtype))
      .masked_fill(hidden, -std::numeric_limits<float>::infinity());
}

// Without wide bfloat16 instructions the kernel's bfloat16 backward is many times slower than its
// float32 one.
torch::Dtype KernelType(const torch::Tensor& x) {
  return x.scalar_type() == torch::kBFloat16 && !HasFastBFloat16() ? torch::kFloat32
                                                                   : x.scalar_type();
}

struct KernelOutput {
  torch::Tensor out, log_sum_exp;
};

KernelOutput RunKernel(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                       const AttentionShape& shape) {
  std::optional<torch::Tensor> mask;
  if (shape.causal) {
    mask = WindowMask(q.size(2), k.size(2), shape.sliding_window, q.scalar_type());
  }
  const bool causal = shape.causal && !mask.has_value() && q.size(2) > 1;
  auto [out, log_sum_exp] =
      at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, mask);
  return {out, log_sum_exp};
}

class AttentionFunction : public torch::autograd::Function<AttentionFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& q,
                               const torch::Tensor& k, const torch::Tensor& v,
                               const std::vector<Segment>& segments, const AttentionShape& shape) {
    torch::Tensor out = at::empty_like(q);
    torch::autograd::variable_list saved{q, k, v, out};
    const torch::Dtype dtype = KernelType(q);
    for (const Block& block : Blocks(segments)) {
      const KernelOutput result =
          RunKernel(Heads(q, block, shape.num_heads, shape.head_dim).to(dtype),
                    Heads(k, block, shape.num_kv_heads, shape.head_dim).to(dtype),
                    Heads(v, block, shape.num_kv_heads, shape.head_dim).to(dtype), shape);
      Heads(out, block, shape.num_heads, shape.head_dim).copy_(result.out);
      saved.push_back(result.log_sum_exp);
      context->saved_data[std::to_string(saved.size())] =
          std::vector<int64_t>{block.begin, block.rows, block.length};
    }
    context->save_for_backward(saved);
    context->saved_data["shape"] = std::vector<int64_t>{
        shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.sliding_window, shape.causal};
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dy) {
    const auto saved = context->get_saved_variables();
    const auto shape = context->saved_data["shape"].toIntVector();
    const torch::Tensor grad = dy[0].contiguous();
    torch::autograd::variable_list result{
        at::empty_like(saved[0]), at::empty_like(saved[1]), at::empty_like(saved[2]), {}, {}};
    const torch::Dtype dtype = KernelType(grad);
    const auto heads = [&](const torch::Tensor& flat, const Block& block, int64_t count) {
      return Heads(flat, block, count, shape[2]);
    };
    for (size_t i = 4; i < saved.size(); ++i) {
      const auto numbers = context->saved_data[std::to_string(i + 1)].toIntVector();
      const Block block{numbers[0], numbers[1], numbers[2]};
      const bool causal = shape[4] != 0;
      const auto mask = causal ? WindowMask(block.length, block.length, shape[3], dtype)
                               : std::optional<torch::Tensor>();
      auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
          heads(grad, block, shape[0]).to(dtype), heads(saved[0], block, shape[0]).to(dtype),
          heads(saved[1], block, shape[1]).to(dtype), heads(saved[2], block, shape[1]).to(dtype),
          heads(saved[3], block, shape[0]).to(dtype), saved[i], 0.0,
          causal && !mask.has_value() && block.length > 1, mask);
      heads(result[0], block, shape[0]).copy_(dq);
      heads(result[1], block, shape[1]).copy_(dk);
      heads(result[2], block, shape[1]).copy_(dv);
    }
    return result;
  }
};

}  // namespace

torch::Tensor Attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const std::vector<Segment>& segments, const AttentionShape& shape) {
  return AttentionFunction::apply(q, k, v, segments, shape);
}

void LayerKvCache::Append(Entry& entry, const torch::Tensor& k, const torch::Tensor& v) {
  const int64_t needed = entry.length + k.size(0);
  const int64_t capacity = entry.keys.defined() ? entry.keys.size(0) : 0;
  if (needed > capacity) {
    const int64_t grown = std::max<int64_t>({needed, 2 * capacity, 64});
    torch::Tensor keys = at::empty({grown, k.size(1)}, k.options()),
                  values = at::empty({grown, v.size(1)}, v.options());
    if (entry.length > 0) {
      keys.narrow(0, 0, entry.length).copy_(entry.keys.narrow(0, 0, entry.length));
      values.narrow(0, 0, entry.length).copy_(entry.values.narrow(0, 0, entry.length));
    }
    entry.keys = keys;
    entry.values = values;
  }
  entry.keys.narrow(0, entry.length, k.size(0)).copy_(k);
  entry.values.narrow(0, entry.length, v.size(0)).copy_(v);
  entry.length = needed;
}

torch::Tensor LayerKvCache::Attend(const torch::Tensor& q, const torch::Tensor& k,
                                   const torch::Tensor& v, const std::vector<Segment>& segments,
                                   const AttentionShape& shape) {
  torch::Tensor out = at::empty_like(q);
  const torch::Dtype dtype = KernelType(q);
  for (const Segment& segment : segments) {
    if (segment.length == 0) continue;
    Entry& entry = sequences_[segment.sample_id];
    Append(entry, k.narrow(0, segment.begin, segment.length),
           v.narrow(0, segment.begin, segment.length));
    const Block queries{segment.begin, segment.length, segment.length};
    const Block cached{0, entry.length, entry.length};
    const KernelOutput result =
        RunKernel(Heads(q, queries, shape.num_heads, shape.head_dim).to(dtype),
                  Heads(entry.keys, cached, shape.num_kv_heads, shape.head_dim).to(dtype),
                  Heads(entry.values, cached, shape.num_kv_heads, shape.head_dim).to(dtype), shape);
    Heads(out, queries, shape.num_heads, shape.head_dim).copy_(result.out);
  }
  return out;
}

int64_t LayerKvCache::Length(int64_t sequence) const {
  const auto found = sequences_.find(sequence);
  return found == sequences_.end() ? 0 : found->second.length;
}

}  // namespace graft::models
