#include "adapters/row_tables.h"

#include <algorithm>
#include <bit>

#include <ATen/ATen.h>

#include "base/status.h"
#include "models/gpu_kernels.h"

namespace graft::adapters {
namespace {

using models::GpuArguments;
using models::GpuKernels;

constexpr char kSource[] =
#include "adapters/row_tables_gpu.inc"
    ;
constexpr int64_t kEntry = 2;  // numbers of an entry
constexpr int kThreads = 256;
constexpr int kMaxRowThreads = 256;  // of a block that makes one number
constexpr uint64_t kAligned = 16;    // bytes of the widest access

// A table's variant for rows of x: narrow where a vector is not aligned.
GpuKernels::Variant VariantFor(const torch::Tensor& x, bool aligned) {
  GpuKernels::Variant variant;
  GRAFT_CHECK(RowTableKernels().Fits({x}, x.size(1), &variant),
              "tables of addresses need contiguous rows");
  if (!aligned) variant.width = 1;
  return variant;
}

// Blocks of kThreads that one row takes.
int64_t PiecesOf(int64_t width, int access) {
  const int64_t each = int64_t{kThreads} * access;
  return (width + each - 1) / each;
}

}  // namespace

GpuKernels& RowTableKernels() {
  static GpuKernels kernels("row_tables", kSource);
  return kernels;
}

RowTables::RowTables(int64_t rows, torch::Dtype dtype, torch::Device device)
    : rows_(rows), dtype_(dtype), device_(device) {
  const auto options = torch::TensorOptions().dtype(dtype).device(device);
  GpuKernels::Variant variant;
  by_address_ =
      device.is_cuda() && RowTableKernels().Fits({at::empty({1, 1}, options)}, 1, &variant);
}

size_t RowTables::AddVectors(int64_t columns, int64_t width) { return Add(columns, width, dtype_); }

size_t RowTables::AddScalesAndBiases(int64_t width) {
  const size_t table = Add(2, width, torch::kFloat32);
  if (!by_address_) tables_[table].vectors.select(1, 0).fill_(1);
  return table;
}

size_t RowTables::Add(int64_t columns, int64_t width, torch::Dtype dtype) {
  Table table{columns, width, static_cast<int64_t>(contents_.size()), true, {}, {}};
  if (by_address_) {
    contents_.resize(contents_.size() + static_cast<size_t>(rows_ * columns * kEntry));
  } else {
    const auto options = torch::TensorOptions().dtype(dtype).device(device_);
    table.vectors = at::zeros({rows_, columns, width}, options);
    table.factors = at::zeros({rows_, columns}, options.dtype(torch::kFloat32));
  }
  tables_.push_back(std::move(table));
  return tables_.size() - 1;
}

void RowTables::Set(size_t number, int64_t begin, int64_t end, int64_t column,
                    const torch::Tensor& vectors, float factor) {
  Table& table = tables_[number];
  const int64_t count = vectors.size(0);
  if (!by_address_) {
    table.vectors.slice(0, begin, end).narrow(1, column, count).copy_(vectors);
    table.factors.slice(0, begin, end).narrow(1, column, count).fill_(factor);
    return;
  }
  const auto first = reinterpret_cast<uint64_t>(vectors.const_data_ptr());
  const uint64_t step = static_cast<uint64_t>(table.width) * vectors.element_size();
  table.aligned = table.aligned && first % kAligned == 0 && step % kAligned == 0;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t entry = table.begin + (row * table.columns + column + i) * kEntry;
      contents_[static_cast<size_t>(entry)] =
          static_cast<int64_t>(first + static_cast<uint64_t>(i) * step);
      contents_[static_cast<size_t>(entry) + 1] = std::bit_cast<uint32_t>(factor);
    }
  }
}

void RowTables::SetVector(size_t table, int64_t row, int64_t column, const torch::Tensor& vector) {
  Set(table, row, row + 1, column, vector.view({1, -1}));
}

std::vector<int64_t> RowTables::Layout() const {
  std::vector<int64_t> layout = {rows_};
  for (const Table& table : tables_)
    layout.insert(layout.end(), {table.columns, table.width, int64_t{table.aligned}});
  return layout;
}

torch::Tensor RowTables::InnerProducts(size_t number, const torch::Tensor& x) const {
  const Table& table = tables_[number];
  if (!by_address_) {
    const torch::Tensor wide = x.to(torch::kFloat32).unsqueeze(2);
    return at::bmm(table.vectors.to(torch::kFloat32), wide).squeeze(2).mul_(table.factors);
  }
  const torch::Tensor rows = x.contiguous();
  torch::Tensor t = at::empty({rows_, table.columns}, x.options().dtype(torch::kFloat32));
  const GpuKernels::Variant variant = VariantFor(rows, table.aligned);
  const int64_t accesses = (table.width + variant.width - 1) / variant.width;
  GpuArguments arguments;
  arguments.Add(rows).Add(EntriesOf(table)).Add(t).Add(table.width).Add(table.columns);
  RowTableKernels().Launch(
      "InnerProducts", variant, x.device(), t.numel(),
      static_cast<int>(std::min<int64_t>(kMaxRowThreads, (accesses + 31) / 32 * 32)),
      arguments.Pointers());
  return t;
}

void RowTables::AddUp(size_t number, const torch::Tensor& t, int64_t first,
                      const torch::Tensor& y) const {
  const Table& table = tables_[number];
  if (!by_address_) {
    const torch::Tensor factors = t.narrow(1, first, table.columns).unsqueeze(1);
    const torch::Tensor sum = at::bmm(factors, table.vectors.to(torch::kFloat32)).squeeze(1);
    y.copy_(y + sum);  // one rounding
    return;
  }
  const GpuKernels::Variant variant = VariantFor(y, table.aligned);
  const int64_t pieces = PiecesOf(table.width, variant.width);
  GpuArguments arguments;
  arguments.Add(t).Add(EntriesOf(table)).Add(y).Add(table.width).Add(table.columns);
  arguments.Add(t.size(1)).Add(first).Add(pieces);
  RowTableKernels().Launch("AddUp", variant, y.device(), rows_ * pieces, kThreads,
                           arguments.Pointers());
}

torch::Tensor RowTables::ScaleAndShift(size_t number, const torch::Tensor& x) const {
  const Table& table = tables_[number];
  if (!by_address_) {
    const torch::Tensor scale = table.vectors.select(1, 0), bias = table.vectors.select(1, 1);
    return at::addcmul(bias, x.to(torch::kFloat32), scale).to(x.scalar_type());
  }
  const torch::Tensor from = x.contiguous(), to = at::empty_like(from);
  const GpuKernels::Variant variant = VariantFor(from, /*aligned=*/true);
  const int64_t pieces = PiecesOf(table.width, variant.width);
  GpuArguments arguments;
  arguments.Add(from).Add(EntriesOf(table)).Add(to).Add(table.width).Add(pieces);
  RowTableKernels().Launch("ScaleAndShift", variant, x.device(), rows_ * pieces, kThreads,
                           arguments.Pointers());
  return to;
}

}  // namespace graft::adapters
