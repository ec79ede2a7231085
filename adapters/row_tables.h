// The edits of decoding rows that belong to many adapters on devices other than the host (there:
// grouped_rows.h), all rows in one go: for each row the vectors that it is multiplied with, found
// by tables. On a GPU the tables hold addresses for kernels of our own (row_tables_gpu.inc), so
// that another arrangement of rows is other contents of the same table, also for a captured step
// (models/gpu_graph.h); elsewhere they hold the vectors side by side for LibTorch's operators. Used
// by trainer/tenants; no gradient.
//
// Shapes: N rows, C vectors of a row, W their width.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

namespace graft::models {
class GpuKernels;  // models/gpu_kernels.h
}

namespace graft::adapters {

// The tables of one pass, filled once for an arrangement of rows.
class RowTables {
 public:
  // For rows of hidden states in `dtype` on `device`.
  RowTables(int64_t rows, torch::Dtype dtype, torch::Device device);
  int64_t rows() const { return rows_; }
  // Whether kernels of our own read them: then PlaceAt must follow, and no address but the table's
  // changes with the arrangement.
  bool by_address() const { return by_address_; }

  // A new table, by its number: `columns` vectors of `width` numbers for each row, absent until
  // they are set. In the rows' dtype, or of scales and biases: float32, (scale, bias) for each row.
  size_t AddVectors(int64_t columns, int64_t width);
  size_t AddScalesAndBiases(int64_t width);
  // Row r of `vectors` (r, W) is column `column` + r of rows [begin, end), times `factor`. The
  // memory must live as long as the tables are used.
  void Set(size_t table, int64_t begin, int64_t end, int64_t column, const torch::Tensor& vectors,
           float factor = 1);
  // Column 0 = scale, 1 = bias: (W) contiguous float32.
  void SetVector(size_t table, int64_t row, int64_t column, const torch::Tensor& vector);

  // What must be equal for two passes to launch the same work.
  std::vector<int64_t> Layout() const;
  // The numbers of all tables, (n) int64 in host memory, and where on the device the kernels find
  // them; the tables do not own it.
  const std::vector<int64_t>& contents() const { return contents_; }
  void PlaceAt(const torch::Tensor& memory) { memory_ = memory; }

  // t[n, c] = factor <vector c of row n, x[n]>, 0 where there is none. x (N, W) -> (N, C) float32.
  torch::Tensor InnerProducts(size_t table, const torch::Tensor& x) const;
  // y[n] += sum over the table's C columns of t[n, first + c] (vector c of row n). y (N, W), t (N,
  // at least first + C) float32.
  void AddUp(size_t table, const torch::Tensor& t, int64_t first, const torch::Tensor& y) const;
  // scale (.) x[n] + bias. x (N, W) -> the same.
  torch::Tensor ScaleAndShift(size_t table, const torch::Tensor& x) const;

 private:
  struct Table {
    int64_t columns = 0, width = 0;
    int64_t begin = 0;               // by address: of its entries in the contents
    bool aligned = true;             // all vectors so far, to the widest access
    torch::Tensor vectors, factors;  // else: (N, C, W), and (N, C) float32
  };
  size_t Add(int64_t columns, int64_t width, torch::Dtype dtype);
  // The entries of a table on the device.
  torch::Tensor EntriesOf(const Table& table) const { return memory_.narrow(0, table.begin, 1); }

  int64_t rows_;
  torch::Dtype dtype_;
  torch::Device device_;
  bool by_address_;
  std::vector<Table> tables_;
  std::vector<int64_t> contents_;  // for each entry an address, and a factor's bits
  torch::Tensor memory_;
};

// The kernels, for tests that compile them where there is no GPU.
models::GpuKernels& RowTableKernels();

}  // namespace graft::adapters
