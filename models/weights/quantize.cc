#include "models/weights/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/status.h"
#include "base/vector_clones.h"

namespace graft::models {
namespace {

constexpr float kInt8Steps = 127.0f;

int64_t Aligned(int64_t bytes) { return (bytes + kQuantAlign - 1) / kQuantAlign * kQuantAlign; }

GRAFT_CLONES float LargestAbs(const float* x, int64_t n) {
  float largest = 0.0f;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

GRAFT_CLONES void RowToInt8(const float* x, int64_t n, float inverse, int8_t* q) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float scaled = std::min(std::max(x[i] * inverse, -kInt8Steps), kInt8Steps);
    // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, without a library call.
    constexpr float kRound = 12582912.0f;
    q[i] = static_cast<int8_t>((scaled + kRound) - kRound);
  }
}

GRAFT_CLONES void RowFromInt8(const int8_t* q, int64_t n, float scale, float* x) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(q[i]) * scale;
}

// Where one nf4 value ends and the next begins.
struct Thresholds {
  float at[15];
};
constexpr Thresholds kNf4Thresholds = [] {
  Thresholds thresholds{};
  for (int i = 0; i < 15; ++i) thresholds.at[i] = (kNf4Code[i] + kNf4Code[i + 1]) / 2;
  return thresholds;
}();

// The nearest code of each x * inverse; of two equally near ones the lower.
GRAFT_CLONES void BlockToNf4(const float* x, int64_t n, float inverse, uint8_t* nearest) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float value = x[i] * inverse;
    int32_t count = 0;
    for (int j = 0; j < 15; ++j) count += value > kNf4Thresholds.at[j] ? 1 : 0;
    nearest[i] = static_cast<uint8_t>(count);
  }
}

// Both values of every byte.
struct PairTable {
  float values[256][2];
};

PairTable MakePairTable() {
  PairTable table;
  for (int byte = 0; byte < 256; ++byte) {
    table.values[byte][0] = kNf4Code[byte >> 4];
    table.values[byte][1] = kNf4Code[byte & 15];
  }
  return table;
}

GRAFT_CLONES void PairsFromNf4(const PairTable& table, const uint8_t* q, int64_t pairs, float scale,
                               float* x) {
  for (int64_t i = 0; i < pairs; ++i) {
    x[2 * i] = table.values[q[i]][0] * scale;
    x[2 * i + 1] = table.values[q[i]][1] * scale;
  }
}

float LoadFloat(const uint8_t* from) {
  float value = 0;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// Values [begin, end) of W row after row.
void DequantizeNf4(const QuantizedShape& shape, const uint8_t* stored, int64_t begin, int64_t end,
                   float* out) {
  static const PairTable table = MakePairTable();
  while (begin < end) {
    const int64_t block = begin / kNf4Block;
    const int64_t stop = std::min(end, (block + 1) * kNf4Block);
    float scale = 0;
    ReadScales(shape, stored, block, block + 1, &scale);
    if (begin % 2 != 0) *out++ = kNf4Code[stored[begin++ / 2] & 15] * scale;
    const int64_t pairs = (stop - begin) / 2;
    PairsFromNf4(table, stored + begin / 2, pairs, scale, out);
    out += 2 * pairs;
    begin += 2 * pairs;
    if (begin < stop) *out++ = kNf4Code[stored[begin++ / 2] >> 4] * scale;
  }
}

uint8_t NearestDynamic(float value) {
  const std::vector<float>& code = DynamicCode();
  const auto above = std::lower_bound(code.begin(), code.end(), value);
  if (above == code.begin()) return 0;
  if (above == code.end()) return 255;
  const auto below = above - 1;
  return static_cast<uint8_t>((value - *below <= *above - value ? below : above) - code.begin());
}

}  // namespace

const std::vector<float>& DynamicCode() {
  // "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861, section 1.3: a sign, up to 7
  // bits that say the power of ten, the rest linear between 0.1 and 1 of it.
  static const std::vector<float> code = [] {
    constexpr int kExponents = 7;
    std::vector<float> values = {0.0f, 1.0f};
    for (int i = 0; i < kExponents; ++i) {
      const int steps = 1 << i;
      const double power = std::pow(10.0, i - (kExponents - 1));
      for (int j = 0; j < steps; ++j) {
        const double middle = 0.1 + 0.9 * (j + 0.5) / steps;
        values.push_back(static_cast<float>(power * middle));
        values.push_back(static_cast<float>(-power * middle));
      }
    }
    std::sort(values.begin(), values.end());
    return values;
  }();
  return code;
}

Quantization ParseQuantization(const std::string& name) {
  for (const Quantization kind : {Quantization::kNone, Quantization::kInt8, Quantization::kNf4}) {
    if (name == QuantizationName(kind)) return kind;
  }
  GRAFT_CHECK(false, "no quantisation is called " + name);
  return Quantization::kNone;
}

const char* QuantizationName(Quantization kind) {
  switch (kind) {
    case Quantization::kInt8:
      return "int8";
    case Quantization::kNf4:
      return "nf4";
    default:
      return "none";
  }
}

int64_t QuantizedShape::scales_begin() const {
  return Aligned(kind == Quantization::kInt8 ? size() : units() * kNf4Block / 2);
}

int64_t QuantizedShape::groups_begin() const { return scales_begin() + Aligned(units()); }

int64_t QuantizedShape::mean_begin() const {
  return groups_begin() + Aligned(scale_groups() * static_cast<int64_t>(sizeof(float)));
}

int64_t QuantizedShape::bytes() const {
  if (kind == Quantization::kInt8) {
    return scales_begin() + Aligned(units() * static_cast<int64_t>(sizeof(float)));
  }
  return mean_begin() + kQuantAlign;
}

void QuantizeUnits(const QuantizedShape& shape, const float* weight, int64_t begin, int64_t end,
                   uint8_t* stored, float* scales) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * shape.unit(), count = std::min(shape.unit(), shape.size() - first);
    const float largest = LargestAbs(weight + first, count);
    scales[unit] = largest;
    if (shape.kind == Quantization::kInt8) {
      RowToInt8(weight + first, count, largest > 0 ? kInt8Steps / largest : 0.0f,
                reinterpret_cast<int8_t*>(stored) + first);
      continue;
    }
    uint8_t nearest[kNf4Block] = {};
    BlockToNf4(weight + first, count, largest > 0 ? 1.0f / largest : 0.0f, nearest);
    for (int64_t i = 0; i < kNf4Block; i += 2) {
      stored[(first + i) / 2] = static_cast<uint8_t>(nearest[i] << 4 | nearest[i + 1]);
    }
  }
}

void StoreScales(const QuantizedShape& shape, const float* scales, uint8_t* stored) {
  const int64_t units = shape.units();
  if (shape.kind == Quantization::kInt8) {
    for (int64_t i = 0; i < units; ++i) {
      const float step = scales[i] / kInt8Steps;
      std::memcpy(stored + shape.scales_begin() + i * 4, &step, sizeof(step));
    }
    return;
  }
  double sum = 0;
  for (int64_t i = 0; i < units; ++i) sum += scales[i];
  const float mean = static_cast<float>(sum / static_cast<double>(units));
  std::memcpy(stored + shape.mean_begin(), &mean, sizeof(mean));
  for (int64_t group = 0; group < shape.scale_groups(); ++group) {
    const int64_t first = group * kNf4ScaleBlock, last = std::min(units, first + kNf4ScaleBlock);
    float largest = 0;
    for (int64_t i = first; i < last; ++i) largest = std::max(largest, std::fabs(scales[i] - mean));
    std::memcpy(stored + shape.groups_begin() + group * 4, &largest, sizeof(largest));
    for (int64_t i = first; i < last; ++i) {
      stored[shape.scales_begin() + i] =
          NearestDynamic(largest > 0 ? (scales[i] - mean) / largest : 0.0f);
    }
  }
}

void ReadScales(const QuantizedShape& shape, const uint8_t* stored, int64_t begin, int64_t end,
                float* scales) {
  const uint8_t* const from = stored + shape.scales_begin();
  if (shape.kind == Quantization::kInt8) {
    for (int64_t i = begin; i < end; ++i) *scales++ = LoadFloat(from + i * 4);
    return;
  }
  static const float* const code = DynamicCode().data();
  const float mean = LoadFloat(stored + shape.mean_begin());
  for (int64_t i = begin; i < end; ++i) {
    const float group = LoadFloat(stored + shape.groups_begin() + i / kNf4ScaleBlock * 4);
    *scales++ = code[from[i]] * group + mean;
  }
}

void DequantizeRow(const QuantizedShape& shape, const uint8_t* stored, int64_t row, int64_t begin,
                   int64_t end, float* out) {
  const int64_t first = row * shape.in;
  if (shape.kind == Quantization::kNf4) {
    DequantizeNf4(shape, stored, first + begin, first + end, out);
    return;
  }
  float scale = 0;
  ReadScales(shape, stored, row, row + 1, &scale);
  RowFromInt8(reinterpret_cast<const int8_t*>(stored) + first + begin, end - begin, scale, out);
}

void QuantizationReport::Add(const std::string& matrix, double error) {
  ++matrices;
  error_sum += error;
  if (error <= largest && !largest_matrix.empty()) return;
  largest = error;
  largest_matrix = matrix;
}

void QuantizationReport::Append(const QuantizationReport& other) {
  matrices += other.matrices;
  error_sum += other.error_sum;
  if (other.matrices == 0 || (other.largest <= largest && !largest_matrix.empty())) return;
  largest = other.largest;
  largest_matrix = other.largest_matrix;
}

}  // namespace graft::models
