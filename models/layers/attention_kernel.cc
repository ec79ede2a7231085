#include "models/layers/attention_kernel.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "models/layers/row_kernels.h"
#include "models/layers/small_gemm.h"

namespace graft::models {
namespace {

constexpr int64_t kBlock = 64;  // rows of queries, and of keys, at a time
constexpr float kHidden = -std::numeric_limits<float>::infinity();

int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Rows [begin, begin + count) of one head of a (N, heads * d) tensor, times `factor`, as float32
// rows `step` floats apart.
void ReadHead(const torch::Tensor& from, int64_t head, int64_t d, int64_t begin, int64_t count,
              float factor, float* to, int64_t step) {
  const int64_t width = from.size(1), first = begin * width + head * d;
  for (int64_t i = 0; i < count; ++i) {
    float* row = to + i * step;
    if (from.scalar_type() == torch::kFloat32) {
      std::copy_n(from.const_data_ptr<float>() + first + i * width, d, row);
    } else {
      rows::Widen(static_cast<const uint16_t*>(from.const_data_ptr()) + first + i * width, row, d);
    }
    if (factor != 1.0f) rows::Scale(row, factor, d);
  }
}

void WriteHead(const float* from, int64_t step, const torch::Tensor& to, int64_t head, int64_t d,
               int64_t begin, int64_t count) {
  const int64_t width = to.size(1), first = begin * width + head * d;
  for (int64_t i = 0; i < count; ++i) {
    if (to.scalar_type() == torch::kFloat32) {
      std::copy_n(from + i * step, d, to.data_ptr<float>() + first + i * width);
    } else {
      rows::Round(from + i * step, static_cast<uint16_t*>(to.data_ptr()) + first + i * width, d);
    }
  }
}

// One head of one segment as float32, rows padded with zeros to whole tiles; and transposed.
class HeadRows {
 public:
  HeadRows(int64_t d, int64_t length)
      : step_(RoundUp(d, kGemmColumns)), rows_(RoundUp(length, kBlock)) {}
  int64_t step() const { return step_; }
  int64_t transposed_step() const { return rows_; }
  int64_t floats() const { return step_ * rows_; }

  void Read(const torch::Tensor& from, int64_t head, int64_t d, const Segment& segment,
            float factor, std::vector<float>* rows) const {
    rows->resize(static_cast<size_t>(floats()));  // zeros
    ReadHead(from, head, d, segment.begin, segment.length, factor, rows->data(), step_);
  }
  void Transpose(const std::vector<float>& rows, std::vector<float>* columns) const {
    columns->resize(static_cast<size_t>(floats()));
    for (int64_t block = 0; block < rows_; block += kGemmColumns) {
      for (int64_t c = 0; c < step_; ++c) {
        for (int64_t i = block; i < block + kGemmColumns; ++i)
          (*columns)[static_cast<size_t>(c * rows_ + i)] = rows[static_cast<size_t>(i * step_ + c)];
      }
    }
  }

 private:
  int64_t step_, rows_;
};

// Which keys the queries of a block see.
struct Visible {
  const AttentionShape& shape;
  int64_t length;  // of the key segment

  int64_t First(int64_t query) const {
    return shape.sliding_window > 0 ? std::max<int64_t>(0, query - shape.sliding_window + 1) : 0;
  }
  int64_t End(int64_t query) const { return shape.causal ? query + 1 : length; }
  // Whether any of queries [query, query_end) sees any of keys [key, key_end).
  bool Any(int64_t query, int64_t query_end, int64_t key, int64_t key_end) const {
    return key < End(query_end - 1) && key_end > First(query);
  }
  // scores: row `query - first_query`, column `key - first_key`; adds the bias by distance.
  void AddBias(float* scores, int64_t head, int64_t query, int64_t query_end, int64_t key,
               int64_t columns) const {
    if (shape.bias == nullptr) return;
    const float* const by_distance = shape.bias->Of(head);
    const int64_t reach = shape.bias->reach;
    for (int64_t i = query; i < query_end; ++i) {
      float* row = scores + (i - query) * kBlock;
      for (int64_t j = 0; j < columns; ++j)
        row[j] += by_distance[std::clamp(key + j - i, -reach, reach)];
    }
  }
  // Hides what is not seen, and the padding up to `columns`.
  void Hide(float* scores, int64_t query, int64_t query_end, int64_t key, int64_t columns) const {
    for (int64_t i = query; i < query_end; ++i) {
      float* row = scores + (i - query) * kBlock;
      const int64_t first = std::clamp<int64_t>(First(i) - key, 0, columns);
      const int64_t end = std::clamp<int64_t>(End(i) - key, first, columns);
      std::fill(row, row + first, kHidden);
      std::fill(row + end, row + columns, kHidden);
    }
  }
};

struct Block {
  int64_t begin = 0, end = 0;
  int64_t count() const { return end - begin; }
  int64_t rows() const { return RoundUp(count(), kGemmRows); }
  int64_t columns() const { return RoundUp(count(), kGemmColumns); }
};

Block BlockAt(int64_t begin, int64_t length) { return {begin, std::min(begin + kBlock, length)}; }

// Scores, probabilities or their gradients of one block: kBlock floats a row.
using Scores = std::vector<float>;

// Work of the layer, dealt out as (segment, head) pairs.
struct Task {
  const Segment* segment;
  const Segment* keys;
  int64_t head;
};

std::vector<Task> Tasks(const std::vector<Segment>& segments,
                        const std::vector<Segment>& key_segments, int64_t heads) {
  std::vector<Task> tasks;
  for (size_t i = 0; i < segments.size(); ++i) {
    for (int64_t head = 0; segments[i].length > 0 && head < heads; ++head)
      tasks.push_back({&segments[i], &key_segments[i], head});
  }
  return tasks;
}

template <typename Body>
void ForEachTask(const std::vector<Task>& tasks, const Body& body) {
  at::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(tasks[static_cast<size_t>(i)]);
  });
}

// One query head of one segment, forward.
class ForwardHead {
 public:
  ForwardHead(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
              const AttentionShape& shape, const Task& task)
      : d_(shape.head_dim),
        segment_(*task.segment),
        head_(task.head),
        keys_segment_(*task.keys),
        layout_(d_, segment_.length),
        key_layout_(d_, keys_segment_.length),
        visible_{shape, keys_segment_.length},
        scores_(kBlock * kBlock) {
    const int64_t kv_head = head_ / (shape.num_heads / shape.num_kv_heads);
    layout_.Read(q, head_, d_, segment_, ScoreScale(shape), &q_);
    std::vector<float> keys;
    key_layout_.Read(k, kv_head, d_, keys_segment_, 1.0f, &keys);
    key_layout_.Transpose(keys, &keys_);
    key_layout_.Read(v, kv_head, d_, keys_segment_, 1.0f, &values_);
  }

  void Run(AttentionResult* result) {
    const int64_t step = layout_.step();
    std::vector<float> out(static_cast<size_t>(kBlock * step));
    float* lse = result->log_sum_exp.data_ptr<float>() + head_ * result->log_sum_exp.size(1);
    for (int64_t begin = 0; begin < segment_.length; begin += kBlock) {
      const Block queries = BlockAt(begin, segment_.length);
      std::fill(out.begin(), out.end(), 0.0f);
      std::fill(top_, top_ + kBlock, kHidden);
      std::fill(sum_, sum_ + kBlock, 0.0f);
      for (int64_t key = 0; key < keys_segment_.length; key += kBlock) {
        const Block keys = BlockAt(key, keys_segment_.length);
        if (visible_.Any(queries.begin, queries.end, keys.begin, keys.end))
          AddKeys(queries, keys, &out);
      }
      for (int64_t i = 0; i < queries.count(); ++i) {
        rows::Scale(out.data() + i * step, 1.0f / sum_[i], d_);
        lse[segment_.begin + begin + i] = top_[i] + std::log(sum_[i]);
      }
      WriteHead(out.data(), step, result->out, head_, d_, segment_.begin + begin, queries.count());
    }
  }

 private:
  // Online softmax: earlier sums shrink when a larger score appears.
  void AddKeys(const Block& queries, const Block& keys, std::vector<float>* out) {
    const int64_t step = layout_.step();
    SmallGemm({q_.data() + queries.begin * step, step, 1}, keys_.data() + keys.begin,
              key_layout_.transposed_step(), scores_.data(), kBlock, queries.rows(), keys.columns(),
              d_, /*add=*/false);
    visible_.AddBias(scores_.data(), head_, queries.begin, queries.end, keys.begin, keys.columns());
    visible_.Hide(scores_.data(), queries.begin, queries.end, keys.begin, keys.columns());
    for (int64_t i = 0; i < queries.count(); ++i) {
      float* row = scores_.data() + i * kBlock;
      const float top = std::max(top_[i], rows::Largest(row, keys.columns()));
      if (top == kHidden) {  // a row that sees none of these keys, nor an earlier one
        std::fill(row, row + keys.columns(), 0.0f);
        continue;
      }
      if (top != top_[i]) {
        const float shrink = std::exp(top_[i] - top);
        sum_[i] *= shrink;
        rows::Scale(out->data() + i * step, shrink, d_);
        top_[i] = top;
      }
      sum_[i] += rows::ExpMinus(row, top, keys.columns());
    }
    SmallGemm({scores_.data(), kBlock, 1}, values_.data() + keys.begin * step, step, out->data(),
              step, queries.rows(), step, keys.count(), /*add=*/true);
  }

  const int64_t d_;
  const Segment& segment_;
  const int64_t head_;
  const Segment& keys_segment_;
  const HeadRows layout_, key_layout_;
  const Visible visible_;
  std::vector<float> q_, keys_, values_;  // scaled queries; keys transposed
  Scores scores_;
  float top_[kBlock], sum_[kBlock];
};

// Gradients of keys and values by query head: the heads of a group add up afterwards, in order.
struct HeadGradients {
  torch::Tensor dk, dv;  // (M, H d) float32
};

// One query head of one segment, backward.
class BackwardHead {
 public:
  BackwardHead(const torch::Tensor& dout, const torch::Tensor& q, const torch::Tensor& k,
               const torch::Tensor& v, const AttentionResult& forward, const AttentionShape& shape,
               const Task& task)
      : d_(shape.head_dim),
        scale_(ScoreScale(shape)),
        segment_(*task.segment),
        head_(task.head),
        keys_segment_(*task.keys),
        layout_(d_, segment_.length),
        key_layout_(d_, keys_segment_.length),
        visible_{shape, keys_segment_.length},
        scores_(kBlock * kBlock),
        gradients_(kBlock * kBlock),
        lse_(forward.log_sum_exp.const_data_ptr<float>() + head_ * forward.log_sum_exp.size(1) +
             segment_.begin) {
    const int64_t kv_head = head_ / (shape.num_heads / shape.num_kv_heads);
    layout_.Read(q, head_, d_, segment_, scale_, &q_);
    key_layout_.Read(k, kv_head, d_, keys_segment_, 1.0f, &keys_);
    key_layout_.Transpose(keys_, &keys_t_);
    std::vector<float> values, out;
    key_layout_.Read(v, kv_head, d_, keys_segment_, 1.0f, &values);
    key_layout_.Transpose(values, &values_t_);
    layout_.Read(dout, head_, d_, segment_, 1.0f, &dout_);
    layout_.Read(forward.out, head_, d_, segment_, 1.0f, &out);
    delta_.resize(static_cast<size_t>(RoundUp(segment_.length, kBlock)));
    for (int64_t i = 0; i < segment_.length; ++i) {
      delta_[static_cast<size_t>(i)] =
          rows::Dot(dout_.data() + i * layout_.step(), out.data() + i * layout_.step(), d_);
    }
  }

  void Run(const torch::Tensor& dq, const HeadGradients& sums) {
    const int64_t step = layout_.step();
    std::vector<float> dq_rows(static_cast<size_t>(layout_.floats()), 0.0f);
    std::vector<float> dk(static_cast<size_t>(kBlock * step)), dv(dk.size());
    for (int64_t key = 0; key < keys_segment_.length; key += kBlock) {
      const Block keys = BlockAt(key, keys_segment_.length);
      std::fill(dk.begin(), dk.end(), 0.0f);
      std::fill(dv.begin(), dv.end(), 0.0f);
      for (int64_t query = 0; query < segment_.length; query += kBlock) {
        const Block queries = BlockAt(query, segment_.length);
        if (visible_.Any(queries.begin, queries.end, keys.begin, keys.end))
          AddBlock(queries, keys, &dq_rows, &dk, &dv);
      }
      WriteHead(dk.data(), step, sums.dk, head_, d_, keys_segment_.begin + key, keys.count());
      WriteHead(dv.data(), step, sums.dv, head_, d_, keys_segment_.begin + key, keys.count());
    }
    rows::Scale(dq_rows.data(), scale_, layout_.floats());
    WriteHead(dq_rows.data(), step, dq, head_, d_, segment_.begin, segment_.length);
  }

 private:
  void AddBlock(const Block& queries, const Block& keys, std::vector<float>* dq,
                std::vector<float>* dk, std::vector<float>* dv) {
    const int64_t step = layout_.step(), columns = keys.columns();
    const float *q = q_.data() + queries.begin * step, *dout = dout_.data() + queries.begin * step;
    SmallGemm({q, step, 1}, keys_t_.data() + keys.begin, key_layout_.transposed_step(),
              scores_.data(), kBlock, queries.rows(), columns, d_, /*add=*/false);
    visible_.AddBias(scores_.data(), head_, queries.begin, queries.end, keys.begin, columns);
    visible_.Hide(scores_.data(), queries.begin, queries.end, keys.begin, columns);
    SmallGemm({dout, step, 1}, values_t_.data() + keys.begin, key_layout_.transposed_step(),
              gradients_.data(), kBlock, queries.rows(), columns, d_, /*add=*/false);
    for (int64_t i = 0; i < queries.count(); ++i) {
      float* p = scores_.data() + i * kBlock;
      rows::ExpMinus(p, lse_[queries.begin + i], columns);
      rows::SoftmaxBackward(p, delta_[static_cast<size_t>(queries.begin + i)],
                            gradients_.data() + i * kBlock, columns);
    }
    // Transposed probabilities and score gradients: rows = keys, products over the queries.
    const int64_t key_rows = keys.rows();
    SmallGemm({scores_.data(), 1, kBlock}, dout, step, dv->data(), step, key_rows, step,
              queries.count(), /*add=*/true);
    SmallGemm({gradients_.data(), 1, kBlock}, q, step, dk->data(), step, key_rows, step,
              queries.count(), /*add=*/true);
    SmallGemm({gradients_.data(), kBlock, 1}, keys_.data() + keys.begin * step, step,
              dq->data() + queries.begin * step, step, queries.rows(), step, keys.count(),
              /*add=*/true);
  }

  const int64_t d_;
  const float scale_;
  const Segment& segment_;
  const int64_t head_;
  const Segment& keys_segment_;
  const HeadRows layout_, key_layout_;
  const Visible visible_;
  std::vector<float> q_, keys_, keys_t_, values_t_, dout_, delta_;  // q_ is scaled
  Scores scores_, gradients_;
  const float* lse_;
};

// (M, H d) float32 -> (M, G d): the heads of a group in order.
torch::Tensor SumGroups(const torch::Tensor& by_head, const AttentionShape& shape,
                        torch::Dtype dtype) {
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  if (group == 1) return by_head.to(dtype);
  return by_head.view({by_head.size(0), shape.num_kv_heads, group, shape.head_dim})
      .sum(2)
      .view({by_head.size(0), shape.num_kv_heads * shape.head_dim})
      .to(dtype);
}

}  // namespace

AttentionResult AttentionForward(const torch::Tensor& q, const torch::Tensor& k,
                                 const torch::Tensor& v, const std::vector<Segment>& segments,
                                 const std::vector<Segment>& key_segments,
                                 const AttentionShape& shape) {
  AttentionResult result{at::empty_like(q),
                         at::empty({shape.num_heads, q.size(0)}, torch::kFloat32)};
  ForEachTask(Tasks(segments, key_segments, shape.num_heads),
              [&](const Task& task) { ForwardHead(q, k, v, shape, task).Run(&result); });
  return result;
}

std::array<torch::Tensor, 3> AttentionBackward(const torch::Tensor& dout, const torch::Tensor& q,
                                               const torch::Tensor& k, const torch::Tensor& v,
                                               const AttentionResult& forward,
                                               const std::vector<Segment>& segments,
                                               const std::vector<Segment>& key_segments,
                                               const AttentionShape& shape) {
  const auto by_head = torch::TensorOptions(torch::kFloat32);
  const HeadGradients sums{at::empty({k.size(0), q.size(1)}, by_head),
                           at::empty({k.size(0), q.size(1)}, by_head)};
  const torch::Tensor dq = at::empty_like(q);
  ForEachTask(Tasks(segments, key_segments, shape.num_heads), [&](const Task& task) {
    BackwardHead(dout, q, k, v, forward, shape, task).Run(dq, sums);
  });
  return {dq, SumGroups(sums.dk, shape, k.scalar_type()),
          SumGroups(sums.dv, shape, v.scalar_type())};
}

}  // namespace graft::models
