#include "models/layers/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/status.h"
#include "models/device.h"
#include "models/layers/attention_kernel.h"
#include "models/layers/attention_mask.h"
#include "models/layers/decode_attention.h"
#include "models/layers/device_attention.h"
#include "models/layers/device_decode_attention.h"
#include "models/layers/frozen_linear.h"
#include "models/layers/saved_state.h"
#include "models/site.h"

namespace graft::models {
namespace {

// Rows [begin, begin + length) of (N, heads * head_dim) -> a view (1, heads, length, head_dim).
torch::Tensor Heads(const torch::Tensor& flat, int64_t begin, int64_t length, int64_t heads,
                    int64_t head_dim) {
  return flat.narrow(0, begin, length).view({1, length, heads, head_dim}).transpose(1, 2);
}

// Without wide bfloat16 instructions the kernel's bfloat16 backward is many times slower than its
// float32 one.
torch::Dtype KernelType(const torch::Tensor& x) {
  const bool widens =
      UsesHostKernels(x) && x.scalar_type() == torch::kBFloat16 && !HasFastBFloat16();
  return widens ? torch::kFloat32 : x.scalar_type();
}

// LibTorch's kernel, without gradient: with a cache the work is reading it, not multiplying.
torch::Tensor RunKernel(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const AttentionShape& shape) {
  if (!UsesHostKernels(q)) return device::AttendOne(q, k, v, shape);
  const ScoreMask mask = MaskOf(q.size(2), k.size(2), shape, q.scalar_type(), q.device());
  std::optional<double> scale;
  if (shape.scale != 0) scale = shape.scale;
  return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, mask.causal,
                                                                     mask.added, scale));
}

// Rows of `segment` of the queries against `length` rows of keys and values, into `out`.
void AttendSegment(const torch::Tensor& q, const torch::Tensor& keys, const torch::Tensor& values,
                   int64_t length, const Segment& segment, const AttentionShape& shape,
                   torch::Tensor& out) {
  const torch::Dtype dtype = KernelType(q);
  const int64_t d = shape.head_dim;
  const torch::Tensor result =
      RunKernel(Heads(q, segment.begin, segment.length, shape.num_heads, d).to(dtype),
                Heads(keys, 0, length, shape.num_kv_heads, d).to(dtype),
                Heads(values, 0, length, shape.num_kv_heads, d).to(dtype), shape);
  Heads(out, segment.begin, segment.length, shape.num_heads, d).copy_(result);
}

struct AttentionCall {
  std::vector<Segment> segments, key_segments;
  AttentionShape shape;
};

class AttentionFunction : public torch::autograd::Function<AttentionFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& q,
                               const torch::Tensor& k, const torch::Tensor& v,
                               const std::shared_ptr<AttentionCall>& call) {
    const auto forward_pass = UsesHostKernels(q) ? &AttentionForward : &device::AttentionForward;
    const AttentionResult result =
        forward_pass(q, k, v, call->segments, call->key_segments, call->shape);
    torch::autograd::variable_list saved = {q, k, v, result.out, result.log_sum_exp};
    saved.insert(saved.end(), result.kernel_state.begin(), result.kernel_state.end());
    context->save_for_backward(std::move(saved));
    SaveState(context, call);
    return result.out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dy) {
    const auto saved = context->get_saved_variables();
    const AttentionCall& call = SavedState<AttentionCall>(context);
    const auto backward_pass =
        UsesHostKernels(saved[0]) ? &AttentionBackward : &device::AttentionBackward;
    const AttentionResult result{saved[3], saved[4], {saved.begin() + 5, saved.end()}};
    const auto [dq, dk, dv] = backward_pass(dy[0].contiguous(), saved[0], saved[1], saved[2],
                                            result, call.segments, call.key_segments, call.shape);
    return {dq, dk, dv, {}};
  }
};

}  // namespace

float ScoreScale(const AttentionShape& shape) {
  return shape.scale > 0 ? shape.scale : 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
}

torch::Tensor Attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const std::vector<Segment>& segments, const AttentionShape& shape) {
  return CrossAttention(q, k, v, segments, segments, shape);
}

torch::Tensor CrossAttention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                             const std::vector<Segment>& segments,
                             const std::vector<Segment>& key_segments,
                             const AttentionShape& shape) {
  auto call = std::make_shared<AttentionCall>(AttentionCall{segments, key_segments, shape});
  return AttentionFunction::apply(q, k, v, call);
}

void LayerKvCache::Append(Entry& entry, const torch::Tensor& k, const torch::Tensor& v,
                          const Segment& segment) {
  const int64_t needed = entry.length + segment.length;
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
  // On a CPU plain copies: a row of a decoding step is far smaller than what a LibTorch call costs.
  const auto copy = [&](const torch::Tensor& from, const torch::Tensor& to) {
    if (!from.is_cpu()) {
      to.narrow(0, entry.length, segment.length)
          .copy_(from.narrow(0, segment.begin, segment.length));
      return;
    }
    const auto row = static_cast<size_t>(from.size(1) * from.element_size());
    std::memcpy(
        static_cast<char*>(to.data_ptr()) + static_cast<size_t>(entry.length) * row,
        static_cast<const char*>(from.const_data_ptr()) + static_cast<size_t>(segment.begin) * row,
        static_cast<size_t>(segment.length) * row);
  };
  copy(k, entry.keys);
  copy(v, entry.values);
  entry.length = needed;
}

torch::Tensor LayerKvCache::Attend(const torch::Tensor& q, const torch::Tensor& k,
                                   const torch::Tensor& v, const std::vector<Segment>& segments,
                                   const AttentionShape& shape, const DecodingInputs* decoding) {
  if (places_ != nullptr) return AttendAtPlaces(q, k, v, segments, shape, decoding);
  const torch::Tensor keys = k.contiguous(), values = v.contiguous();
  const bool host = UsesHostKernels(q);
  std::vector<Segment> prompts;  // of sequences that begin
  std::vector<DecodingRow> rows;
  std::vector<std::pair<Segment, const Entry*>> others;
  for (const Segment& segment : segments) {
    if (segment.length == 0) continue;
    Entry& entry = sequences_[segment.sample_id];
    const bool begins = entry.length == 0;
    Append(entry, keys, values, segment);
    if (segment.length == 1 && shape.causal && host) {
      rows.push_back({segment.begin, &entry.keys, &entry.values, entry.length});
    } else if (begins && host) {
      prompts.push_back(segment);
    } else {
      others.emplace_back(segment, &entry);
    }
  }
  const torch::Tensor queries = q.contiguous();
  torch::Tensor out = prompts.empty()
                          ? at::empty_like(queries)
                          : AttentionForward(queries, keys, values, prompts, prompts, shape).out;
  for (const auto& [segment, entry] : others)
    AttendSegment(queries, entry->keys, entry->values, entry->length, segment, shape, out);
  if (!rows.empty()) DecodeAttention(queries, rows, shape, out);
  return out;
}

torch::Tensor LayerKvCache::AttendAtPlaces(const torch::Tensor& q, const torch::Tensor& k,
                                           const torch::Tensor& v,
                                           const std::vector<Segment>& segments,
                                           const AttentionShape& shape,
                                           const DecodingInputs* decoding) {
  GRAFT_CHECK(shape.causal && shape.bias == nullptr, "a cache with fixed room serves decoders");
  if (!keys_.defined()) {
    keys_ = at::zeros({places_->count(), rows_, k.size(1)}, k.options());
    values_ = at::zeros_like(keys_);
  }
  const torch::Tensor queries = q.contiguous(), keys = k.contiguous(), values = v.contiguous();
  if (decoding != nullptr) {
    return device::DecodeAttention(queries, keys, values, *decoding, {keys_, values_}, shape);
  }
  for (const Segment& segment : segments) {
    GRAFT_CHECK(segment.prompt_length > 0 && segment.length <= rows_,
                "a pass without DecodingInputs begins its sequences");
    const int64_t place = places_->Take(segment.sample_id);
    const auto copy = [&](const torch::Tensor& from, const torch::Tensor& to) {
      to[place].narrow(0, 0, segment.length).copy_(from.narrow(0, segment.begin, segment.length));
    };
    copy(keys, keys_);
    copy(values, values_);
  }
  return device::AttentionForward(queries, keys, values, segments, segments, shape).out;
}

void LayerKvCache::CopyPlaces(const std::vector<KvPlaces::Copy>& copies) {
  for (const auto& [from, to] : copies) {
    keys_[to].copy_(keys_[from]);
    values_[to].copy_(values_[from]);
  }
}

torch::Tensor LayerKvCache::AttendSource(const torch::Tensor& q, const torch::Tensor& k,
                                         const torch::Tensor& v,
                                         const std::vector<Segment>& segments,
                                         const std::vector<Segment>& key_segments,
                                         const AttentionShape& shape) {
  torch::Tensor out = at::empty_like(q);
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& keys = key_segments[i];
    Source& source = sources_[segments[i].sample_id];
    if (keys.length > 0) {
      source = {k.narrow(0, keys.begin, keys.length).clone(),
                v.narrow(0, keys.begin, keys.length).clone()};
    }
    AttendSegment(q, source.keys, source.values, source.keys.size(0), segments[i], shape, out);
  }
  return out;
}

LayerKvCache::Entry LayerKvCache::Entry::Copy() const {
  Entry copy = {at::empty_like(keys), at::empty_like(values), length};
  copy.keys.narrow(0, 0, length).copy_(keys.narrow(0, 0, length));
  copy.values.narrow(0, 0, length).copy_(values.narrow(0, 0, length));
  return copy;
}

void LayerKvCache::Fork(const std::vector<SequenceFork>& forks) {
  ForkSequences(sequences_, forks, [](const Entry& entry) { return entry.Copy(); });
  ForkSequences(sources_, forks, [](const Source& source) { return source; });
}

int64_t LayerKvCache::Length(int64_t sequence) const {
  const auto found = sequences_.find(sequence);
  return found == sequences_.end() ? 0 : found->second.length;
}

}  // namespace graft::models
