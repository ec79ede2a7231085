#include "models/layers/decode_attention.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "base/vector_clones.h"
#include "models/layers/row_kernels.h"

namespace graft::models {
namespace {

constexpr int64_t kBlock = 64;  // keys, or values, converted at a time

// Some rows of one head of keys or values as float32, `step` floats apart.
struct HeadBlock {
  const float* data;
  int64_t step;
};

// Rows [begin, begin + count) of a head; `scratch` is room for them where they must be converted.
HeadBlock ReadBlock(const torch::Tensor& from, int64_t head, int64_t d, int64_t begin,
                    int64_t count, std::vector<float>* scratch) {
  const int64_t width = from.size(1), first = begin * width + head * d;
  if (from.scalar_type() == torch::kFloat32) {
    return {from.const_data_ptr<float>() + first, width};
  }
  scratch->resize(static_cast<size_t>(kBlock * d));
  const auto* bits = static_cast<const uint16_t*>(from.const_data_ptr()) + first;
  for (int64_t i = 0; i < count; ++i) rows::Widen(bits + i * width, scratch->data() + i * d, d);
  return {scratch->data(), d};
}

// scores[g * step + i] = <q_g, k_i>.
GRAFT_CLONES void Score(const float* q, int64_t group, int64_t d, const HeadBlock& keys,
                        int64_t count, float* scores, int64_t step) {
  for (int64_t i = 0; i < count; ++i) {
    const float* key = keys.data + i * keys.step;
    for (int64_t g = 0; g < group; ++g) {
      const float* query = q + g * d;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < d; ++c) sum += query[c] * key[c];
      scores[g * step + i] = sum;
    }
  }
}

// out_g += sum_i weights[g * step + i] v_i.
GRAFT_CLONES void Mix(const float* weights, int64_t step, int64_t group, int64_t d,
                      const HeadBlock& values, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float* value = values.data + i * values.step;
    for (int64_t g = 0; g < group; ++g) {
      const float weight = weights[g * step + i];
      float* mixed = out + g * d;
#pragma omp simd
      for (int64_t c = 0; c < d; ++c) mixed[c] += weight * value[c];
    }
  }
}

// The query heads of one row that share a key-value head.
class HeadGroup {
 public:
  explicit HeadGroup(const AttentionShape& shape)
      : shape_(shape), d_(shape.head_dim), group_(shape.num_heads / shape.num_kv_heads) {}

  void Run(const torch::Tensor& q, const DecodingRow& row, int64_t kv_head,
           const torch::Tensor& out) {
    const int64_t first =
        shape_.sliding_window > 0 ? std::max<int64_t>(0, row.length - shape_.sliding_window) : 0;
    const int64_t seen = row.length - first;
    scores_.resize(static_cast<size_t>(group_ * seen));
    ReadQueries(q, row.row, kv_head);
    for (int64_t i = 0; i < seen; i += kBlock) {
      const int64_t count = std::min(kBlock, seen - i);
      Score(queries_.data(), group_, d_,
            ReadBlock(*row.keys, kv_head, d_, first + i, count, &scratch_), count,
            scores_.data() + i, seen);
    }
    for (int64_t g = 0; g < group_; ++g) Weigh(kv_head * group_ + g, g, seen);
    mixed_.assign(static_cast<size_t>(group_ * d_), 0.0f);
    for (int64_t i = 0; i < seen; i += kBlock) {
      const int64_t count = std::min(kBlock, seen - i);
      Mix(scores_.data() + i, seen, group_, d_,
          ReadBlock(*row.values, kv_head, d_, first + i, count, &scratch_), count, mixed_.data());
    }
    Write(out, row.row, kv_head);
  }

 private:
  int64_t Place(int64_t row, int64_t kv_head) const {
    return row * shape_.num_heads * d_ + kv_head * group_ * d_;
  }

  void ReadQueries(const torch::Tensor& q, int64_t row, int64_t kv_head) {
    queries_.resize(static_cast<size_t>(group_ * d_));
    if (q.scalar_type() == torch::kFloat32) {
      std::copy_n(q.const_data_ptr<float>() + Place(row, kv_head), group_ * d_, queries_.data());
    } else {
      rows::Widen(static_cast<const uint16_t*>(q.const_data_ptr()) + Place(row, kv_head),
                  queries_.data(), group_ * d_);
    }
    rows::Scale(queries_.data(), ScoreScale(shape_), group_ * d_);
  }

  // Scores of a head to the weights of its values, by their distance from the last position.
  void Weigh(int64_t head, int64_t g, int64_t seen) {
    float* scores = scores_.data() + g * seen;
    if (shape_.bias != nullptr) {
      const float* const by_distance = shape_.bias->Of(head);
      for (int64_t i = 0; i < seen; ++i)
        scores[i] += by_distance[std::max(i - (seen - 1), -shape_.bias->reach)];
    }
    rows::SoftmaxInPlace(scores, seen);
  }

  void Write(const torch::Tensor& out, int64_t row, int64_t kv_head) {
    if (out.scalar_type() == torch::kFloat32) {
      std::copy_n(mixed_.data(), group_ * d_, out.data_ptr<float>() + Place(row, kv_head));
    } else {
      rows::Round(mixed_.data(), static_cast<uint16_t*>(out.data_ptr()) + Place(row, kv_head),
                  group_ * d_);
    }
  }

  const AttentionShape& shape_;
  const int64_t d_, group_;
  std::vector<float> queries_, scores_, mixed_, scratch_;
};

}  // namespace

void DecodeAttention(const torch::Tensor& q, const std::vector<DecodingRow>& rows,
                     const AttentionShape& shape, const torch::Tensor& out) {
  const int64_t heads = shape.num_kv_heads;
  const auto tasks = static_cast<int64_t>(rows.size()) * heads;
  int64_t longest = 1;
  for (const DecodingRow& row : rows) longest = std::max(longest, row.length);
  constexpr int64_t kWork = 32'768;  // products that are worth a thread
  const int64_t work = longest * shape.head_dim * 2 * shape.num_heads / heads;
  at::parallel_for(0, tasks, std::max<int64_t>(1, kWork / work), [&](int64_t begin, int64_t end) {
    HeadGroup group(shape);
    for (int64_t i = begin; i < end; ++i)
      group.Run(q, rows[static_cast<size_t>(i / heads)], i % heads, out);
  });
}

}  // namespace graft::models
