#include "models/weights/quantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "base/philox.h"
#include "base/status.h"

namespace graft::models {
namespace {

std::vector<float> NormalMatrix(const QuantizedShape& shape) {
  std::vector<float> weight(static_cast<size_t>(shape.size()));
  PhiloxFillNormal(7, 0, 0.0, 0.02, weight.data(), shape.size());
  return weight;
}

std::vector<uint8_t> Store(const QuantizedShape& shape, const std::vector<float>& weight) {
  std::vector<uint8_t> stored(static_cast<size_t>(shape.bytes()));
  std::vector<float> scales(static_cast<size_t>(shape.units()));
  // In two pieces, as two threads would.
  const int64_t middle = shape.units() / 2;
  QuantizeUnits(shape, weight.data(), middle, shape.units(), stored.data(), scales.data());
  QuantizeUnits(shape, weight.data(), 0, middle, stored.data(), scales.data());
  StoreScales(shape, scales.data(), stored.data());
  return stored;
}

std::vector<float> Load(const QuantizedShape& shape, const std::vector<uint8_t>& stored) {
  std::vector<float> weight(static_cast<size_t>(shape.size()));
  for (int64_t row = 0; row < shape.out; ++row) {
    DequantizeRow(shape, stored.data(), row, 0, shape.in, weight.data() + row * shape.in);
  }
  return weight;
}

TEST(QuantizeTest, Names) {
  for (const Quantization kind : {Quantization::kNone, Quantization::kInt8, Quantization::kNf4}) {
    EXPECT_EQ(ParseQuantization(QuantizationName(kind)), kind);
  }
  EXPECT_THROW(ParseQuantization("int4"), StatusError);
}

TEST(QuantizeTest, CodesOfThePapers) {
  EXPECT_TRUE(std::is_sorted(std::begin(kNf4Code), std::end(kNf4Code)));
  EXPECT_EQ(kNf4Code[7], 0.0f);
  const std::vector<float>& code = DynamicCode();
  EXPECT_EQ(code.size(), 256u);
  EXPECT_EQ(std::set<float>(code.begin(), code.end()).size(), 256u);
  EXPECT_EQ(code.front(), -0.99296875f);  // as bitsandbytes prints it
  EXPECT_EQ(code.back(), 1.0f);
  EXPECT_EQ(code[127], 0.0f);
  EXPECT_FLOAT_EQ(code[128], 5.5e-7f);
}

TEST(QuantizeTest, BytesOfAWeight) {
  const QuantizedShape int8{Quantization::kInt8, 4096, 11008}, nf4{Quantization::kNf4, 4096, 11008};
  const auto weights = static_cast<double>(int8.size());
  EXPECT_NEAR(static_cast<double>(int8.bytes()) / weights, 1.0 + 4.0 / 11008, 1e-5);
  EXPECT_NEAR(static_cast<double>(nf4.bytes()) / weights, 0.5 + 1.0 / 64 + 4.0 / (64 * 256), 1e-5);
}

TEST(QuantizeTest, Int8IsTheNearestStep) {
  const QuantizedShape shape{Quantization::kInt8, 9, 37};
  const std::vector<float> weight = NormalMatrix(shape),
                           through = Load(shape, Store(shape, weight));
  for (int64_t row = 0; row < shape.out; ++row) {
    const float* const values = weight.data() + row * shape.in;
    float largest = 0;
    for (int64_t i = 0; i < shape.in; ++i) largest = std::max(largest, std::fabs(values[i]));
    for (int64_t i = 0; i < shape.in; ++i) {
      const float step = largest / 127;
      EXPECT_LE(std::fabs(through[static_cast<size_t>(row * shape.in + i)] - values[i]),
                step * 0.5001f);
    }
  }
}

TEST(QuantizeTest, Nf4IsTheNearestCode) {
  const QuantizedShape shape{Quantization::kNf4, 40, 100};  // blocks cross rows, the last is short
  const std::vector<float> weight = NormalMatrix(shape);
  const std::vector<uint8_t> stored = Store(shape, weight);
  for (int64_t i = 0; i < shape.size(); ++i) {
    const int64_t block = i / kNf4Block, first = block * kNf4Block;
    float largest = 0;
    for (int64_t j = first; j < std::min(first + kNf4Block, shape.size()); ++j) {
      largest = std::max(largest, std::fabs(weight[static_cast<size_t>(j)]));
    }
    const uint8_t byte = stored[static_cast<size_t>(i / 2)];
    const float* best =
        std::min_element(std::begin(kNf4Code), std::end(kNf4Code), [&](float a, float b) {
          const float value = weight[static_cast<size_t>(i)] / largest;
          return std::fabs(value - a) < std::fabs(value - b);
        });
    EXPECT_EQ(kNf4Code[i % 2 == 0 ? byte >> 4 : byte & 15], *best) << i;
  }
}

TEST(QuantizeTest, Nf4ScalesAreWithinAPercentOfTheLargest) {
  const QuantizedShape shape{Quantization::kNf4, 300, 130};  // three groups of scales
  std::vector<float> scales(static_cast<size_t>(shape.units())), read(scales.size());
  for (size_t i = 0; i < scales.size(); ++i) {
    scales[i] = 0.02f + 0.001f * static_cast<float>((i * 37) % 19);
  }
  std::vector<uint8_t> stored(static_cast<size_t>(shape.bytes()));
  StoreScales(shape, scales.data(), stored.data());
  ReadScales(shape, stored.data(), 0, shape.units(), read.data());
  EXPECT_EQ(shape.scale_groups(), 3);
  for (size_t i = 0; i < scales.size(); ++i) EXPECT_NEAR(read[i], scales[i], 0.01f * 0.01f) << i;
}

TEST(QuantizeTest, AnyPartOfARow) {
  for (const Quantization kind : {Quantization::kInt8, Quantization::kNf4}) {
    const QuantizedShape shape{kind, 5, 133};  // every second row begins inside a byte of nf4
    const std::vector<uint8_t> stored = Store(shape, NormalMatrix(shape));
    const std::vector<float> whole = Load(shape, stored);
    for (int64_t row = 0; row < shape.out; ++row) {
      for (const auto& [begin, end] : {std::pair{0, 1}, {1, 2}, {1, 64}, {63, 130}, {132, 133}}) {
        std::vector<float> part(static_cast<size_t>(end - begin));
        DequantizeRow(shape, stored.data(), row, begin, end, part.data());
        const auto first = whole.begin() + row * shape.in + begin;
        EXPECT_TRUE(std::equal(part.begin(), part.end(), first)) << row << " " << begin;
      }
    }
  }
}

TEST(QuantizeTest, ZerosStayZero) {
  for (const Quantization kind : {Quantization::kInt8, Quantization::kNf4}) {
    const QuantizedShape shape{kind, 3, 64};
    std::vector<float> weight(static_cast<size_t>(shape.size()), 0.0f);
    weight[64] = 0.5f;  // one row is not
    const std::vector<float> through = Load(shape, Store(shape, weight));
    for (size_t i = 0; i < weight.size(); ++i) EXPECT_NEAR(through[i], weight[i], 1e-7f) << i;
  }
}

TEST(QuantizeTest, ReportKeepsTheLargest) {
  QuantizationReport first, second, all;
  first.Add("a", 0.1);
  first.Add("b", 0.3);
  second.Add("c", 0.2);
  all.Append(first);
  all.Append(second);
  all.Append({});
  EXPECT_EQ(all.matrices, 3);
  EXPECT_NEAR(all.mean(), 0.2, 1e-12);
  EXPECT_EQ(all.largest_matrix, "b");
}

}  // namespace
}  // namespace graft::models
