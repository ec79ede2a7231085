#include "models/layers/quantized_weight.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "base/hash.h"
#include "models/gpu_kernels.h"
#include "models/layers/row_kernels.h"

namespace graft::models {
namespace {

constexpr int64_t kSlabBytes = int64_t{8} << 20;
constexpr int64_t kColumnStep = 64;      // column slabs begin where a block of nf4 usually does
constexpr int64_t kGrainValues = 32768;  // of W, in one piece of work of a thread

constexpr char kKernelSource[] =
#include "models/layers/quantized_weight_gpu.inc"
    ;
constexpr int kKernelThreads = 256;

// (rows, columns) of this thread's own memory. It stays: a slab that came and went between tensors
// that are kept for the backward pass would leave a hole each time.
torch::Tensor SlabRoom(int64_t rows, int64_t columns, torch::Dtype dtype) {
  static thread_local torch::Tensor room;
  const int64_t bytes = rows * columns * static_cast<int64_t>(c10::elementSize(dtype));
  if (!room.defined() || room.numel() < bytes) {
    room = at::empty({std::max(bytes, kSlabBytes)}, torch::kUInt8);
  }
  return room.narrow(0, 0, bytes).view(dtype).view({rows, columns});
}

// W~ of rows [row, row + rows), columns [column, column + columns) into `out` (rows, columns),
// which is float32 or bfloat16. With `rounded` float32 values are those of bfloat16.
void Dequantize(const QuantizedShape& shape, const uint8_t* stored, int64_t row, int64_t column,
                bool rounded, torch::Tensor& out) {
  const int64_t rows = out.size(0), columns = out.size(1);
  const bool narrow = out.scalar_type() == torch::kBFloat16;
  auto* const bits = static_cast<uint16_t*>(narrow ? out.data_ptr() : nullptr);
  float* const floats = narrow ? nullptr : out.data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, kGrainValues / columns);
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> wide(static_cast<size_t>(narrow ? columns : 0));
    std::vector<uint16_t> half(static_cast<size_t>(rounded && !narrow ? columns : 0));
    for (int64_t i = begin; i < end; ++i) {
      float* const target = narrow ? wide.data() : floats + i * columns;
      DequantizeRow(shape, stored, row + i, column, column + columns, target);
      if (narrow) {
        rows::Round(target, bits + i * columns, columns);
      } else if (rounded) {
        rows::Round(target, half.data(), columns);
        rows::Widen(half.data(), target, columns);
      }
    }
  });
}

class QuantizedWeight : public FrozenWeight {
 public:
  QuantizedWeight(torch::Tensor stored, QuantizedShape shape, torch::Dtype dtype, FrozenUse use)
      : stored_(std::move(stored)), shape_(shape), dtype_(dtype) {
    if (!stored_.is_cpu() || use == FrozenUse::kPassing) return;
    const auto size = static_cast<std::size_t>(stored_.nbytes());
    packed_.push_back({stored_.data_ptr(), size, Hash64(stored_.data_ptr(), size)});
  }
  int64_t in_features() const override { return shape_.in; }
  int64_t out_features() const override { return shape_.out; }
  int64_t bytes() const override { return shape_.bytes(); }
  std::vector<PackedBytes> Packed() const override { return packed_; }

  torch::Tensor Multiply(const torch::Tensor& x, torch::Dtype result) const override {
    const torch::Tensor input = x.to(ComputeType()).contiguous();
    if (!stored_.is_cpu()) {
      return at::mm(input, DequantizeMatrix(stored_, shape_, dtype_).t()).to(result);
    }
    torch::Tensor y = at::empty({x.size(0), shape_.out}, input.options());
    const int64_t rows = SlabWidth(shape_.in, 1);
    for (int64_t begin = 0; begin < shape_.out; begin += rows) {
      const torch::Tensor slab = Slab(begin, 0, std::min(rows, shape_.out - begin), shape_.in);
      torch::Tensor part = y.narrow(1, begin, slab.size(0));
      at::mm_out(part, input, slab.t());
    }
    return y.to(result);
  }

  torch::Tensor MultiplyTransposed(const torch::Tensor& dy, torch::Dtype result) const override {
    const torch::Tensor gradient = dy.to(ComputeType()).contiguous();
    if (!stored_.is_cpu()) {
      return at::mm(gradient, DequantizeMatrix(stored_, shape_, dtype_)).to(result);
    }
    torch::Tensor dx = at::empty({dy.size(0), shape_.in}, gradient.options());
    const int64_t columns = SlabWidth(shape_.out, kColumnStep);
    for (int64_t begin = 0; begin < shape_.in; begin += columns) {
      const torch::Tensor slab = Slab(0, begin, shape_.out, std::min(columns, shape_.in - begin));
      torch::Tensor part = dx.narrow(1, begin, slab.size(1));
      at::mm_out(part, gradient, slab);
    }
    return dx.to(result);
  }

  torch::Tensor Rows(const torch::Tensor& indices) const override {
    return DequantizeMatrix(stored_, shape_, dtype_).index_select(0, indices);
  }

 private:
  // bfloat16 products need the processor's own instructions; without them float32 on the same W~.
  torch::Dtype ComputeType() const {
    const bool slow = stored_.is_cpu() && dtype_ == torch::kBFloat16 && !HasFastBFloat16();
    return slow ? torch::kFloat32 : dtype_;
  }

  // Rows (columns) of a slab with `length` values in each.
  int64_t SlabWidth(int64_t length, int64_t step) const {
    const auto element = static_cast<int64_t>(c10::elementSize(ComputeType()));
    return std::max(step, kSlabBytes / element / length / step * step);
  }

  // Valid until the next one.
  torch::Tensor Slab(int64_t row, int64_t column, int64_t rows, int64_t columns) const {
    torch::Tensor slab = SlabRoom(rows, columns, ComputeType());
    Dequantize(shape_, stored_.data_ptr<uint8_t>(), row, column, dtype_ == torch::kBFloat16, slab);
    return slab;
  }

  const torch::Tensor stored_;
  const QuantizedShape shape_;
  const torch::Dtype dtype_;
  std::vector<PackedBytes> packed_;
};

// ||W - W~|| / ||W||; 0 for a matrix of zeros. Adds in a fixed order.
double ErrorOf(const torch::Tensor& weight, const QuantizedShape& shape, const uint8_t* stored) {
  struct Sums {
    double error = 0, weight = 0;
  };
  std::vector<Sums> rows(static_cast<size_t>(shape.out));
  at::parallel_for(0, shape.out, std::max<int64_t>(1, kGrainValues / shape.in),
                   [&](int64_t begin, int64_t end) {
                     std::vector<float> row(static_cast<size_t>(shape.in));
                     for (int64_t i = begin; i < end; ++i) {
                       const float* const values = weight.data_ptr<float>() + i * shape.in;
                       DequantizeRow(shape, stored, i, 0, shape.in, row.data());
                       for (size_t j = 0; j < row.size(); ++j) row[j] -= values[j];
                       rows[static_cast<size_t>(i)] = {rows::SumOfSquares(row.data(), shape.in),
                                                       rows::SumOfSquares(values, shape.in)};
                     }
                   });
  Sums all;
  for (const Sums& row : rows) {
    all.error += row.error;
    all.weight += row.weight;
  }
  return all.weight > 0 ? std::sqrt(all.error / all.weight) : 0.0;
}

// A part of the stored form as a tensor of another type.
torch::Tensor Part(const torch::Tensor& stored, int64_t begin, int64_t count, torch::Dtype type) {
  const auto bytes = count * static_cast<int64_t>(c10::elementSize(type));
  return stored.narrow(0, begin, bytes).view(type);
}

constexpr int64_t kNf4Values = static_cast<int64_t>(std::size(kNf4Code));

// The 16 values of nf4, then the 256 of the scales' code, (272) float32. Copied to a device once:
// later products do not wait for it.
torch::Tensor Nf4Tables(torch::Device device) {
  static std::mutex mutex;
  static auto* const tables = new std::map<std::pair<c10::DeviceType, int>, torch::Tensor>();
  const std::lock_guard<std::mutex> lock(mutex);
  torch::Tensor& table = (*tables)[{device.type(), device.index()}];
  if (!table.defined()) {
    std::vector<float> values(std::begin(kNf4Code), std::end(kNf4Code));
    values.insert(values.end(), DynamicCode().begin(), DynamicCode().end());
    table = at::tensor(values, torch::kFloat32).to(device);
  }
  return table;
}

// By kernels of our own, which read the codes once and write nothing but W~; undefined where they
// do not run.
torch::Tensor DequantizeByKernel(const torch::Tensor& stored, const QuantizedShape& shape,
                                 torch::Dtype dtype) {
  if (!stored.is_cuda()) return {};
  torch::Tensor out = at::empty({shape.out, shape.in}, stored.options().dtype(dtype));
  GpuKernels::Variant variant;
  if (!QuantizedKernels().Fits({out}, shape.in, &variant)) return {};
  const auto part = [&](int64_t begin) { return stored.narrow(0, begin, 1); };
  GpuArguments arguments;
  const bool is_int8 = shape.kind == Quantization::kInt8;
  if (is_int8) {
    arguments.Add(stored).Add(part(shape.scales_begin())).Add(out).Add(shape.in);
  } else {
    arguments.Add(stored).Add(part(shape.scales_begin())).Add(part(shape.groups_begin()));
    arguments.Add(part(shape.mean_begin())).Add(Nf4Tables(stored.device())).Add(out);
  }
  arguments.Add(shape.size());
  const int64_t numbers = int64_t{kKernelThreads} * variant.width;  // of a block of threads
  QuantizedKernels().Launch(is_int8 ? "FromInt8" : "FromNf4", variant, stored.device(),
                            (shape.size() + numbers - 1) / numbers, kKernelThreads,
                            arguments.Pointers());
  return out;
}

}  // namespace

torch::Tensor QuantizeMatrix(const torch::Tensor& weight, Quantization kind, double* error) {
  const torch::Tensor values = weight.contiguous();
  const QuantizedShape shape{kind, values.size(0), values.size(1)};
  torch::Tensor stored = at::zeros({shape.bytes()}, torch::kUInt8);
  auto* const bytes = stored.data_ptr<uint8_t>();
  std::vector<float> scales(static_cast<size_t>(shape.units()));
  at::parallel_for(0, shape.units(), std::max<int64_t>(1, kGrainValues / shape.unit()),
                   [&](int64_t begin, int64_t end) {
                     QuantizeUnits(shape, values.data_ptr<float>(), begin, end, bytes,
                                   scales.data());
                   });
  StoreScales(shape, scales.data(), bytes);
  *error = ErrorOf(values, shape, bytes);
  return stored;
}

torch::Tensor DequantizeMatrix(const torch::Tensor& stored, const QuantizedShape& shape,
                               torch::Dtype dtype) {
  const torch::Tensor by_kernel = DequantizeByKernel(stored, shape, dtype);
  if (by_kernel.defined()) return by_kernel;
  const int64_t units = shape.units();
  if (shape.kind == Quantization::kInt8) {
    const torch::Tensor scales = Part(stored, shape.scales_begin(), units, torch::kFloat32);
    return Part(stored, 0, shape.size(), torch::kInt8)
        .view({shape.out, shape.in})
        .to(torch::kFloat32)
        .mul_(scales.unsqueeze(1))
        .to(dtype);
  }
  const torch::Tensor tables = Nf4Tables(stored.device());
  const torch::Tensor groups =
      Part(stored, shape.groups_begin(), shape.scale_groups(), torch::kFloat32)
          .repeat_interleave(kNf4ScaleBlock)
          .narrow(0, 0, units);
  const torch::Tensor mean = Part(stored, shape.mean_begin(), 1, torch::kFloat32);
  const torch::Tensor scales =
      tables.narrow(0, kNf4Values, tables.numel() - kNf4Values)
          .index_select(0, stored.narrow(0, shape.scales_begin(), units).to(torch::kInt32))
          .mul_(groups)
          .add_(mean);
  const torch::Tensor bytes = stored.narrow(0, 0, units * kNf4Block / 2);
  const torch::Tensor codes =
      at::stack({bytes.bitwise_right_shift(4), bytes.bitwise_and(15)}, 1).flatten();
  return tables.narrow(0, 0, kNf4Values)
      .index_select(0, codes.to(torch::kInt32))
      .view({units, kNf4Block})
      .mul_(scales.unsqueeze(1))
      .flatten()
      .narrow(0, 0, shape.size())
      .view({shape.out, shape.in})
      .to(dtype);
}

GpuKernels& QuantizedKernels() {
  static GpuKernels kernels("quantized_weight", kKernelSource);
  return kernels;
}

std::shared_ptr<const FrozenWeight> MakeQuantizedWeight(torch::Tensor stored, QuantizedShape shape,
                                                        torch::Dtype dtype, FrozenUse use) {
  return std::make_shared<QuantizedWeight>(std::move(stored), shape, dtype, use);
}

}  // namespace graft::models
