// Frozen matrices in 8 or 4 bits: how they are stored, and the loops between float32 and that form.
// Used by models/layers/quantized_weight.h, which multiplies with them, and by the cost model.
// Plain memory, no LibTorch.
//
// int8: each output channel (row of W) has its own scale, symmetric: q = round(w / s), s = max|w| /
// 127, W~ = q s.
// nf4: "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314, section 3 and appendix E.
// W row after row is cut into blocks of 64 values, each stored as the nearest of 16 quantiles of a
// normal distribution times the block's max|w|. Those scales are quantised in turn ("double
// quantisation"): their mean is taken off and the rest stored in 8 bits with one float32 per 256
// scales, in the code that bitsandbytes uses. So a weight takes 4 + 8/64 + 32/(64 * 256) = 4.127
// bits.
//
// Stored form, one piece of memory: the codes, the scales, and for nf4 the scales' scales and their
// mean; each part begins at a multiple of kQuantAlign. Two nf4 values share a byte, the first in
// the high half.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace graft::models {

enum class Quantization { kNone, kInt8, kNf4 };
// "none", "int8", "nf4"; any other text is a bug: the recipe allows only these.
Quantization ParseQuantization(const std::string& name);
const char* QuantizationName(Quantization kind);

inline constexpr int64_t kNf4Block = 64;        // values that share a scale
inline constexpr int64_t kNf4ScaleBlock = 256;  // scales that share a scale of their own
inline constexpr int64_t kQuantAlign = 64;

// The 16 values of nf4, appendix E of the paper.
inline constexpr float kNf4Code[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
// The 256 values of the scales' code, rising from about -1 to 1 (bitsandbytes' dynamic map).
const std::vector<float>& DynamicCode();

// One matrix W (out, in) and where the parts of its stored form are.
struct QuantizedShape {
  Quantization kind = Quantization::kInt8;
  int64_t out = 0, in = 0;

  int64_t size() const { return out * in; }
  // What is quantised on its own: a row (int8) or a block (nf4; the last one may be short).
  int64_t unit() const { return kind == Quantization::kInt8 ? in : kNf4Block; }
  int64_t units() const { return (size() + unit() - 1) / unit(); }
  int64_t scale_groups() const { return (units() + kNf4ScaleBlock - 1) / kNf4ScaleBlock; }
  // Byte offsets. Codes begin at 0.
  int64_t scales_begin() const;
  int64_t groups_begin() const;  // nf4
  int64_t mean_begin() const;    // nf4
  int64_t bytes() const;         // of the whole
};

// Codes of units [begin, end) of `weight` (out * in floats) into `stored`, and max|w| of each into
// `scales` (units() floats).
void QuantizeUnits(const QuantizedShape& shape, const float* weight, int64_t begin, int64_t end,
                   uint8_t* stored, float* scales);
// The scales of all units into `stored`.
void StoreScales(const QuantizedShape& shape, const float* scales, uint8_t* stored);
// The scale of each unit of [begin, end) as W~ has it.
void ReadScales(const QuantizedShape& shape, const uint8_t* stored, int64_t begin, int64_t end,
                float* scales);
// W~ of one row, columns [begin, end), into `out`.
void DequantizeRow(const QuantizedShape& shape, const uint8_t* stored, int64_t row, int64_t begin,
                   int64_t end, float* out);

// How far the quantised matrices of a part of the model are from what they were made of. The error
// of a matrix is ||W - W~|| / ||W|| (Frobenius).
struct QuantizationReport {
  int64_t matrices = 0;
  double error_sum = 0;
  double largest = 0;
  std::string largest_matrix;

  double mean() const { return matrices == 0 ? 0.0 : error_sum / static_cast<double>(matrices); }
  void Add(const std::string& matrix, double error);
  void Append(const QuantizationReport& other);
};

}  // namespace graft::models
