// The CUDA source of a decoding step's kernels, run on the host (cuda_on_host.h) against sums in
// float64, and of hash64 against base/hash.h: what they compute is known before they see a GPU.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "base/hash.h"
#include "tests/gpu/cuda_on_host.h"

#pragma GCC diagnostic ignored "-Wunused-function"

namespace graft::cuda_on_host::hash {
#include "memory_hash_gpu.cuh"
}

// The sources, each for float by 1 and 4 and for bfloat16 by 8; made by CMakeLists.txt.
namespace graft::cuda_on_host {
#define V 4
namespace float4 {
#include "decode_attention_gpu.cuh"
}
namespace rows_float4 {
#include "row_tables_gpu.cuh"
}
#undef V
#define V 1
namespace float1 {
#include "decode_attention_gpu.cuh"
}
namespace rows_float1 {
#include "row_tables_gpu.cuh"
}
#undef V
#define V 8
#define BF16
namespace bfloat8 {
#include "decode_attention_gpu.cuh"
}
namespace rows_bfloat8 {
#include "row_tables_gpu.cuh"
}
#undef V

namespace {

template <typename T>
T Stored(float number) {
  if constexpr (std::is_same_v<T, float>) {
    return number;
  } else {
    return bfloat8::Round(number);
  }
}
double Wide(float number) { return number; }
double Wide(unsigned short bits) { return bfloat8::Wide(bits); }

template <typename T>
std::vector<T> Random(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  // Aligned to the widest access: std::vector's memory is to 16 bytes.
  std::vector<T> numbers;
  for (int64_t i = 0; i < count; ++i) numbers.push_back(Stored<T>(normal(random)));
  return numbers;
}

template <typename T>
double Error(const std::vector<T>& got, const std::vector<double>& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (Wide(got[i]) - want[i]) * (Wide(got[i]) - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(error / norm);
}

struct Heads {
  int64_t heads, kv_heads, dim, window;
};

// Rows at positions around the borders of chunks, of sequences at mixed places.
template <typename T>
class Attention {
 public:
  Attention(Heads heads, int64_t rows) : h_(heads), rows_(rows) {
    positions_ = {0, rows - 1, rows / 2, std::min<int64_t>(rows - 1, 256), 7};
    places_ = {3, 0, 4, 1, 5};
    const int64_t width = h_.kv_heads * h_.dim, n = count();
    q_ = Random<T>(n * h_.heads * h_.dim, 1);
    k_ = Random<T>(n * width, 2);
    v_ = Random<T>(n * width, 3);
    keys_ = Random<T>(6 * rows * width, 4);
    values_ = Random<T>(6 * rows * width, 5);
    scale_ = 1.0f / std::sqrt(static_cast<float>(h_.dim));
  }
  int64_t count() const { return static_cast<int64_t>(positions_.size()); }

  template <typename Chunk, typename Join>
  std::vector<T> Run(const Chunk& attend_chunk, const Join& join_chunks) {
    const int64_t group = h_.heads / h_.kv_heads, tiles = (group + 7) / 8;
    const int64_t chunks = (rows_ + 255) / 256;
    std::vector<T> out(q_.size());
    std::vector<float> parts(static_cast<size_t>(count() * h_.heads * chunks * (h_.dim + 2)));
    Launch(count() * h_.kv_heads * tiles * chunks, 128, [&] {
      attend_chunk(q_.data(), k_.data(), v_.data(), keys_.data(), values_.data(), positions_.data(),
                   places_.data(), out.data(), parts.data(), rows_, h_.kv_heads, group, h_.dim,
                   chunks, h_.window, scale_);
    });
    if (chunks > 1) {
      Launch(count() * h_.heads, 128, [&] {
        join_chunks(parts.data(), positions_.data(), out.data(), h_.heads, h_.dim, chunks,
                    h_.window);
      });
    }
    return out;
  }

  // From the cache as it is after Run, which must hold the rows' own keys and values.
  std::vector<double> Wanted() const {
    std::vector<double> out(q_.size());
    for (int64_t n = 0; n < count(); ++n) {
      for (int64_t head = 0; head < h_.heads; ++head) AttendHead(n, head, &out);
    }
    return out;
  }
  bool HasStoredItsRows() const {
    const int64_t width = h_.kv_heads * h_.dim;
    for (int64_t n = 0; n < count(); ++n) {
      for (int64_t i = 0; i < width; ++i) {
        const auto at =
            static_cast<size_t>((places_[Of(n)] * rows_ + positions_[Of(n)]) * width + i);
        if (keys_[at] != k_[Of(n * width + i)] || values_[at] != v_[Of(n * width + i)])
          return false;
      }
    }
    return true;
  }

 private:
  static size_t Of(int64_t n) { return static_cast<size_t>(n); }
  void AttendHead(int64_t n, int64_t head, std::vector<double>* out) const {
    const int64_t position = positions_[Of(n)], d = h_.dim;
    const int64_t first = h_.window > 0 ? std::max<int64_t>(0, position + 1 - h_.window) : 0;
    const int64_t kv_head = head / (h_.heads / h_.kv_heads);
    const auto place = [&](int64_t i) {
      return ((places_[Of(n)] * rows_ + i) * h_.kv_heads + kv_head) * d;
    };
    double sum = 0;
    std::vector<double> mixed(Of(d));
    for (int64_t i = first; i <= position; ++i) {
      double score = 0;
      for (int64_t c = 0; c < d; ++c)
        score += Wide(q_[Of((n * h_.heads + head) * d + c)]) * Wide(keys_[Of(place(i) + c)]);
      const double weight = std::exp(score * scale_);
      sum += weight;
      for (int64_t c = 0; c < d; ++c) mixed[Of(c)] += weight * Wide(values_[Of(place(i) + c)]);
    }
    for (int64_t c = 0; c < d; ++c) (*out)[Of((n * h_.heads + head) * d + c)] = mixed[Of(c)] / sum;
  }

  Heads h_;
  int64_t rows_;
  float scale_ = 1;
  std::vector<long long> positions_, places_;
  std::vector<T> q_, k_, v_, keys_, values_;
};

const Heads kHeads[] = {{4, 4, 64, 0},  {8, 2, 32, 0},    {12, 1, 64, 0}, {4, 2, 96, 0},
                        {2, 1, 256, 0}, {4, 4, 128, 300}, {8, 2, 64, 7}};

// One chunk, and three.
TEST(KernelsOnHostTest, DecodeAttention) {
  for (const Heads& heads : kHeads) {
    for (const int64_t rows : {40, 520}) {
      const std::string name = std::to_string(heads.heads) + " heads of " +
                               std::to_string(heads.dim) + ", " + std::to_string(rows) + " rows";
      Attention<float> wide(heads, rows);
      const auto got = wide.Run(float4::AttendChunk, float4::JoinChunks);
      EXPECT_LT(Error(got, wide.Wanted()), 1e-6) << name;
      EXPECT_TRUE(wide.HasStoredItsRows()) << name;
      Attention<unsigned short> bfloat(heads, rows);
      const auto rounded = bfloat.Run(bfloat8::AttendChunk, bfloat8::JoinChunks);
      EXPECT_LT(Error(rounded, bfloat.Wanted()), 4e-3) << name;
      EXPECT_TRUE(bfloat.HasStoredItsRows()) << name;
    }
  }
}

// A width that no wide access divides.
TEST(KernelsOnHostTest, DecodeAttentionOfOddHeads) {
  Attention<float> odd({9, 3, 20 + 1, 0}, 300);
  const auto got = odd.Run(float1::AttendChunk, float1::JoinChunks);
  EXPECT_LT(Error(got, odd.Wanted()), 1e-6);
}

// Edits of `rows` rows by the kernels of one variant; every third vector is absent.
template <typename T, typename Entry, typename Inner, typename Up, typename Scale>
void CheckRowTables(const Inner& inner_products, const Up& add_up, const Scale& scale_and_shift,
                    int64_t in, int64_t out, int64_t access, double tolerance) {
  const int64_t rows = 5, columns = 7, first = 2, used = 4;
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  const auto x = Random<T>(rows * in, 1), a = Random<T>(rows * columns * in, 2);
  const auto b = Random<T>(rows * used * out, 3), y = Random<T>(rows * out, 4);
  const auto vectors = Random<float>(2 * rows * out, 5);
  std::vector<Entry> down(size(rows * columns)), up(size(rows * used)), both(size(rows * 2));
  std::vector<double> want_t(size(rows * columns)), want_y, want_scaled;
  for (int64_t i = 0; i < rows * columns; ++i) {
    if (i % 3 == 2) continue;
    down[size(i)] = {a.data() + i * in, 0.5f, 0};
    for (int64_t c = 0; c < in; ++c)
      want_t[size(i)] += 0.5 * Wide(a[size(i * in + c)]) * Wide(x[size(i / columns * in + c)]);
  }
  for (const T number : y) want_y.push_back(Wide(number));
  want_scaled = want_y;
  std::vector<float> t(size(rows * columns));
  Launch(rows * columns, 64, [&] { inner_products(x.data(), down.data(), t.data(), in, columns); });
  EXPECT_LT(Error(t, want_t), 1e-6);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < used && row != 1; ++c) {  // row 1 has none
      if ((row + c) % 3 == 2) continue;
      up[size(row * used + c)] = {b.data() + (row * used + c) * out, 1.0f, 0};
      for (int64_t i = 0; i < out; ++i) {
        want_y[size(row * out + i)] +=
            double{t[size(row * columns + first + c)]} * Wide(b[size((row * used + c) * out + i)]);
      }
    }
    for (const int64_t part : {0, 1}) {
      if (row == 1 || row - 2 == part) continue;
      both[size(2 * row + part)] = {vectors.data() + (2 * row + part) * out, 1.0f, 0};
      for (int64_t i = 0; i < out; ++i) {
        const double number = vectors[size((2 * row + part) * out + i)];
        double& wanted = want_scaled[size(row * out + i)];
        wanted = part == 0 ? wanted * number : wanted + number;
      }
    }
  }
  const int64_t pieces = (out + 64 * access - 1) / (64 * access);
  std::vector<T> added = y, scaled(y.size());
  Launch(rows * pieces, 64,
         [&] { add_up(t.data(), up.data(), added.data(), out, used, columns, first, pieces); });
  EXPECT_LT(Error(added, want_y), tolerance);
  EXPECT_TRUE(std::equal(y.begin() + out, y.begin() + 2 * out, added.begin() + out));
  Launch(rows * pieces, 64,
         [&] { scale_and_shift(y.data(), both.data(), scaled.data(), out, pieces); });
  EXPECT_LT(Error(scaled, want_scaled), tolerance);
}

TEST(KernelsOnHostTest, RowTables) {
  for (const int64_t in : {8, 72, 1024}) {
    for (const int64_t out : {8, 520}) {
      CheckRowTables<float, rows_float4::Entry>(rows_float4::InnerProducts, rows_float4::AddUp,
                                                rows_float4::ScaleAndShift, in, out, 4, 1e-6);
      CheckRowTables<float, rows_float1::Entry>(rows_float1::InnerProducts, rows_float1::AddUp,
                                                rows_float1::ScaleAndShift, in + 3, out + 3, 1,
                                                1e-6);
      CheckRowTables<unsigned short, rows_bfloat8::Entry>(
          rows_bfloat8::InnerProducts, rows_bfloat8::AddUp, rows_bfloat8::ScaleAndShift, in, out, 8,
          4e-3);
    }
  }
}

uint64_t HashByKernel(const unsigned char* data, int64_t size) {
  unsigned long long sum = 0;
  const int64_t block_bytes = 4 * hash::kBlockWords;
  Launch((size + block_bytes - 1) / block_bytes, hash::kThreads,
         [&] { hash::HashWords(data, size, &sum); });
  return sum + Hash64Length(static_cast<size_t>(size));
}

// Every number of left-over bytes and words around the borders of accesses and blocks, from every
// address.
TEST(KernelsOnHostTest, Hash64) {
  constexpr int64_t kBlock = 4 * hash::kBlockWords;
  std::vector<unsigned char> bytes(static_cast<size_t>(2 * kBlock + 100));
  std::mt19937 random(5);
  for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random());
  const auto check = [&](int64_t begin, int64_t size) {
    const unsigned char* const data = bytes.data() + begin;
    EXPECT_EQ(HashByKernel(data, size), graft::Hash64(data, static_cast<size_t>(size)))
        << size << " bytes from " << begin;
  };
  for (int64_t size = 0; size < 70; ++size) check(0, size);
  for (int64_t begin = 0; begin < 17; ++begin) check(begin, 83);
  for (const int64_t more : {-17, -1, 0, 1, 16}) check(0, kBlock + more);
  check(1, kBlock + 5);
  check(0, 2 * kBlock + 37);
}

}  // namespace
}  // namespace graft::cuda_on_host
