#include "models/layers/device_decode_attention.h"

#include <limits>

#include <ATen/ATen.h>

#include "models/gpu_kernels.h"

namespace graft::models::device {
namespace {

constexpr char kSource[] =
#include "models/layers/decode_attention_gpu.inc"
    ;
// As in the source.
constexpr int64_t kHeadsOfBlock = 8, kChunk = 256, kMaxHeadDim = 256;
constexpr int kThreads = 128;

bool ByKernels(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
               const DecodingInputs& decoding, const PlacedRows& cache, const AttentionShape& shape,
               torch::Tensor* out) {
  const int64_t d = shape.head_dim;
  GpuKernels::Variant variant;
  if (d > kMaxHeadDim ||
      !DecodeAttentionKernels().Fits({q, k, v, cache.keys, cache.values}, d, &variant))
    return false;
  *out = at::empty_like(q);
  const int64_t rows = q.size(0), group = shape.num_heads / shape.num_kv_heads;
  const int64_t tiles = (group + kHeadsOfBlock - 1) / kHeadsOfBlock;
  const int64_t chunks = (cache.keys.size(1) + kChunk - 1) / kChunk;
  // Largest score, sum and mixed values of each chunk, where there are several.
  const torch::Tensor parts =
      at::empty({chunks == 1 ? 0 : rows * shape.num_heads * chunks * (d + 2)},
                q.options().dtype(torch::kFloat32));
  GpuArguments arguments;
  arguments.Add(q).Add(k).Add(v).Add(cache.keys).Add(cache.values);
  arguments.Add(decoding.positions).Add(decoding.places).Add(*out).Add(parts);
  arguments.Add(cache.keys.size(1)).Add(shape.num_kv_heads).Add(group).Add(d).Add(chunks);
  arguments.Add(shape.sliding_window).Add(ScoreScale(shape));
  DecodeAttentionKernels().Launch("AttendChunk", variant, q.device(),
                                  rows * shape.num_kv_heads * tiles * chunks, kThreads,
                                  arguments.Pointers());
  if (chunks == 1) return true;
  GpuArguments join;
  join.Add(parts).Add(decoding.positions).Add(*out);
  join.Add(shape.num_heads).Add(d).Add(chunks).Add(shape.sliding_window);
  DecodeAttentionKernels().Launch("JoinChunks", variant, q.device(), rows * shape.num_heads,
                                  kThreads, join.Pointers());
  return true;
}

// (N, rows of the cache) bool: what row n does not see.
torch::Tensor Hidden(const torch::Tensor& positions, int64_t rows, int64_t window) {
  const torch::Tensor key = at::arange(rows, positions.options()).unsqueeze(0);
  const torch::Tensor own = positions.unsqueeze(1);
  const torch::Tensor later = key.gt(own);
  return window == 0 ? later : later.logical_or(key.le(own - window));
}

torch::Tensor ByOperators(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                          const DecodingInputs& decoding, const PlacedRows& cache,
                          const AttentionShape& shape) {
  const int64_t n = q.size(0), rows = cache.keys.size(1), d = shape.head_dim;
  const int64_t kv_heads = shape.num_kv_heads, group = shape.num_heads / kv_heads;
  const torch::Tensor places = decoding.places * rows + decoding.positions;
  const auto append = [&](const torch::Tensor& to, const torch::Tensor& from) {
    to.view({-1, from.size(1)}).index_copy_(0, places, from);
    return to.index_select(0, decoding.places)
        .to(torch::kFloat32)
        .view({n, rows, kv_heads, d})
        .transpose(1, 2);
  };
  const torch::Tensor keys = append(cache.keys, k), values = append(cache.values, v);
  const torch::Tensor queries =
      q.to(torch::kFloat32).mul(ScoreScale(shape)).view({n, kv_heads, group, d});
  const torch::Tensor hidden = Hidden(decoding.positions, rows, shape.sliding_window);
  const torch::Tensor scores =
      at::matmul(queries, keys.transpose(2, 3))
          .masked_fill_(hidden.view({n, 1, 1, rows}), -std::numeric_limits<float>::infinity());
  return at::matmul(at::softmax(scores, -1), values).view(q.sizes()).to(q.scalar_type());
}

}  // namespace

GpuKernels& DecodeAttentionKernels() {
  static GpuKernels kernels("decode_attention", kSource);
  return kernels;
}

torch::Tensor DecodeAttention(const torch::Tensor& q, const torch::Tensor& k,
                              const torch::Tensor& v, const DecodingInputs& decoding,
                              const PlacedRows& cache, const AttentionShape& shape) {
  torch::Tensor out;
  if (ByKernels(q, k, v, decoding, cache, shape, &out)) return out;
  return ByOperators(q, k, v, decoding, cache, shape);
}

}  // namespace graft::models::device
