#include "models/layers/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "models/device.h"
#include "models/layers/device_rows.h"
#include "models/layers/row_kernels.h"
#include "models/layers/rows.h"

namespace graft::models {
namespace {

// float32 arithmetic as in the reference: base and exponent are rounded to float first.
std::vector<float> PlainFrequencies(double base, int64_t dim) {
  std::vector<float> frequencies;
  for (int64_t i = 0; i < dim; i += 2) {
    const float exponent = static_cast<float>(i) / static_cast<float>(dim);
    frequencies.push_back(1.0f / static_cast<float>(std::pow(static_cast<float>(base), exponent)));
  }
  return frequencies;
}

// Base grows with the sequence beyond the trained length (NTK-aware scaling).
std::vector<float> DynamicFrequencies(const RopeConfig& rope, int64_t dim, int64_t max_positions,
                                      int64_t length) {
  const double seen = static_cast<double>(std::max(length, max_positions));
  const double stretch =
      rope.factor * seen / static_cast<double>(max_positions) - (rope.factor - 1.0);
  const double exponent = static_cast<double>(dim) / static_cast<double>(dim - 2);
  return PlainFrequencies(rope.theta * std::pow(stretch, exponent), dim);
}

// Llama 3: long wavelengths are divided by the factor, short ones kept, those between blended.
std::vector<float> Llama3Frequencies(const RopeConfig& rope, std::vector<float> frequencies) {
  const float original = static_cast<float>(rope.original_max_positions);
  const float low = static_cast<float>(rope.low_freq_factor),
              high = static_cast<float>(rope.high_freq_factor);
  const float factor = static_cast<float>(rope.factor);
  for (float& frequency : frequencies) {
    const float wavelength = 2.0f * std::numbers::pi_v<float> / frequency;
    if (wavelength > original / low) {
      frequency /= factor;
    } else if (wavelength >= original / high) {
      const float smooth = (original / wavelength - low) / (high - low);
      frequency = (1.0f - smooth) * frequency / factor + smooth * frequency;
    }
  }
  return frequencies;
}

double YarnMagnitude(double scale, double mscale) {
  return scale <= 1.0 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

// YaRN (arXiv 2309.00071): interpolate low frequencies, keep high ones, ramp between.
std::vector<float> YarnFrequencies(const RopeConfig& rope, int64_t dim, int64_t original,
                                   float* attention_factor) {
  if (rope.attention_factor.has_value()) {
    *attention_factor = static_cast<float>(*rope.attention_factor);
  } else if (rope.mscale.value_or(0) != 0 && rope.mscale_all_dim.value_or(0) != 0) {
    *attention_factor = static_cast<float>(YarnMagnitude(rope.factor, *rope.mscale) /
                                           YarnMagnitude(rope.factor, *rope.mscale_all_dim));
  } else {
    *attention_factor = static_cast<float>(YarnMagnitude(rope.factor, 1.0));
  }
  const auto correction = [&](double rotations) {
    return static_cast<double>(dim) *
           std::log(static_cast<double>(original) / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(rope.theta));
  };
  double low = correction(rope.beta_fast), high = correction(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;  // the reference's guard against a zero-width ramp
  std::vector<float> frequencies = PlainFrequencies(rope.theta, dim);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float ramp =
        std::clamp(static_cast<float>((static_cast<double>(i) - low) / (high - low)), 0.0f, 1.0f);
    const float interpolated = frequencies[i] / static_cast<float>(rope.factor);
    frequencies[i] = interpolated * ramp + frequencies[i] * (1.0f - ramp);
  }
  return frequencies;
}

// Position times inverse frequency, (N, head_dim / 2) float32.
torch::Tensor AnglesOf(const ModelConfig& config, const MicroBatch& batch,
                       float* attention_factor) {
  const int64_t half = config.head_dim / 2;
  torch::Tensor angles = at::empty({batch.num_rows(), half}, torch::kFloat32);
  float* angle = angles.data_ptr<float>();
  std::vector<float> frequencies;
  for (const Segment& segment : batch.segments) {
    const int64_t length =
        segment.length == 0
            ? 0
            : batch.positions[static_cast<size_t>(segment.begin + segment.length - 1)] + 1;
    if (frequencies.empty() || config.rope.type == "dynamic")
      frequencies = InverseFrequencies(config, length, attention_factor);
    for (int64_t row = segment.begin; row < segment.begin + segment.length; ++row) {
      const float position = static_cast<float>(batch.positions[static_cast<size_t>(row)]);
      for (int64_t i = 0; i < half; ++i)
        angle[row * half + i] = position * frequencies[static_cast<size_t>(i)];
    }
  }
  return angles;
}

RopeAngles CosinesAndSines(const torch::Tensor& angles, float attention_factor) {
  RopeAngles result{at::empty_like(angles), at::empty_like(angles)};
  const float* angle = angles.const_data_ptr<float>();
  float* cosine = result.cosine.data_ptr<float>();
  float* sine = result.sine.data_ptr<float>();
  for (int64_t i = 0; i < angles.numel(); ++i) {
    cosine[i] = std::cos(angle[i]) * attention_factor;
    sine[i] = std::sin(angle[i]) * attention_factor;
  }
  return result;
}

torch::Tensor RotateAll(const torch::Tensor& x, const RopeAngles& angles, int64_t head_dim,
                        float sign) {
  if (!UsesHostKernels(x)) return device::Rotate(x, angles.cosine, angles.sine, head_dim, sign);
  torch::Tensor y = at::empty_like(x);
  const int64_t width = x.size(1), half = head_dim / 2;
  const float* cosine = angles.cosine.const_data_ptr<float>();
  const float* sine = angles.sine.const_data_ptr<float>();
  rows::ParallelRows(x.size(0), width, [&](int64_t begin, int64_t end) {
    rows::RowReader in(x);
    rows::RowWriter out(y);
    for (int64_t row = begin; row < end; ++row) {
      const float* from = in.Read(row);
      float* to = out.Room(row);
      for (int64_t head = 0; head < width; head += head_dim) {
        rows::Rotate(from + head, cosine + row * half, sine + row * half, sign, to + head, half);
      }
      out.Store(row);
    }
  });
  return y;
}

class RopeFunction : public torch::autograd::Function<RopeFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& cosine, const torch::Tensor& sine,
                               int64_t head_dim) {
    context->save_for_backward({cosine, sine});
    context->saved_data["head_dim"] = head_dim;
    return RotateAll(x, {cosine, sine}, head_dim, 1.0f);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list dy) {
    const auto saved = context->get_saved_variables();
    const torch::Tensor dx = RotateAll(dy[0].contiguous(), {saved[0], saved[1]},
                                       context->saved_data["head_dim"].toInt(), -1.0f);
    return {dx, torch::Tensor(), torch::Tensor(), torch::Tensor()};
  }
};

}  // namespace

std::vector<float> InverseFrequencies(const ModelConfig& config, int64_t length,
                                      float* attention_factor) {
  const RopeConfig& rope = config.rope;
  *attention_factor = 1.0f;
  const int64_t original =
      rope.original_max_positions > 0 ? rope.original_max_positions : config.max_positions;
  if (rope.type == "dynamic")
    return DynamicFrequencies(rope, config.head_dim, config.max_positions, length);
  if (rope.type == "yarn")
    return YarnFrequencies(rope, config.head_dim, original, attention_factor);
  std::vector<float> frequencies = PlainFrequencies(rope.theta, config.head_dim);
  if (rope.type == "llama3") return Llama3Frequencies(rope, std::move(frequencies));
  if (rope.type == "linear") {
    for (float& frequency : frequencies) frequency /= static_cast<float>(rope.factor);
  }
  return frequencies;
}

RopeAngles MakeRopeAngles(const ModelConfig& config, const MicroBatch& batch, torch::Dtype dtype,
                          torch::Device device) {
  float attention_factor = 1.0f;
  const torch::Tensor angles = AnglesOf(config, batch, &attention_factor);
  RopeAngles result;
  if (device.is_cpu()) {
    result = CosinesAndSines(angles, attention_factor);
  } else {
    const torch::Tensor moved = ToDevice(angles, device);
    result = {at::cos(moved).mul_(attention_factor), at::sin(moved).mul_(attention_factor)};
  }
  if (dtype != torch::kFloat32) {
    result = {result.cosine.to(dtype).to(torch::kFloat32),
              result.sine.to(dtype).to(torch::kFloat32)};
  }
  return result;
}

RopeAngles MakeRopeTable(const ModelConfig& config, int64_t rows, torch::Dtype dtype,
                         torch::Device device) {
  MicroBatch batch;
  for (int64_t position = 0; position < rows; ++position) {
    batch.segments.push_back({.begin = position, .length = 1});
    batch.positions.push_back(position);
  }
  return MakeRopeAngles(config, batch, dtype, device);
}

torch::Tensor Rope(const torch::Tensor& x, const RopeAngles& angles, int64_t head_dim) {
  return RopeFunction::apply(x, angles.cosine, angles.sine, head_dim);
}

}  // namespace graft::models
