// Rows of several adapters edited by tables, and what they must become: for tests of both forms.
#pragma once

#include <array>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "adapters/row_tables.h"

namespace graft::adapters {

// Two linears that share an input, adapters of different ranks on some of the rows.
class RowTablesCase {
 public:
  RowTablesCase(int64_t in, int64_t out, at::ScalarType dtype, at::Device device)
      : in_(in), out_(out), dtype_(dtype), device_(device) {
    at::manual_seed(5);
    x_ = Random({kRows, in});
    y_ = Random({kRows, out});
    for (const auto& [begin, end, first, second] :
         std::vector<std::array<int64_t, 4>>{{0, 1, 1, 0}, {1, 6, 7, 3}, {7, 11, 8, 5}}) {
      parts_.push_back({begin, end, Factors(first), Factors(second)});
    }
    scale_ = at::rand({out}).add(0.5).to(device);
    bias_ = at::randn({out}).to(device);
  }

  // y of both linears, and y scaled and shifted in three ways: a part of a longer vector, both, a
  // bias alone; other rows as they are.
  struct Result {
    at::Tensor first, second, scaled;
  };
  Result Edited() const {
    RowTables tables(kRows, dtype_, device_);
    const size_t down = tables.AddVectors(8 + 5, in_);
    const size_t up[] = {tables.AddVectors(8, out_), tables.AddVectors(5, out_)};
    const size_t vectors = tables.AddScalesAndBiases(out_);
    for (const Part& part : parts_) {
      int64_t column = 0;
      for (const int linear : {0, 1}) {
        const auto& [a, b] = linear == 0 ? part.first : part.second;
        if (a.size(0) > 0) tables.Set(down, part.begin, part.end, column, a, kFactor);
        if (a.size(0) > 0) tables.Set(up[linear], part.begin, part.end, 0, b);
        column = 8;
      }
    }
    tables.SetVector(vectors, 2, 0, scale_);
    tables.SetVector(vectors, 2, 1, bias_);
    tables.SetVector(vectors, 3, 1, bias_);
    tables.SetVector(vectors, 5, 0, scale_);
    if (tables.by_address()) tables.PlaceAt(at::tensor(tables.contents(), at::kLong).to(device_));
    const at::Tensor t = tables.InnerProducts(down, x_);
    Result result{y_.clone(), y_.clone(), tables.ScaleAndShift(vectors, y_)};
    tables.AddUp(up[0], t, 0, result.first);
    tables.AddUp(up[1], t, 8, result.second);
    return result;
  }

  // In float64.
  Result Wanted() const {
    const at::Tensor y = Wide(y_);
    Result wanted{y.clone(), y.clone(), y.clone()};
    for (const Part& part : parts_) {
      const auto add = [&](const std::pair<at::Tensor, at::Tensor>& factors, const at::Tensor& to) {
        const at::Tensor t =
            at::mm(Wide(x_).slice(0, part.begin, part.end), Wide(factors.first).t());
        to.slice(0, part.begin, part.end).add_(at::mm(t, Wide(factors.second)), kFactor);
      };
      add(part.first, wanted.first);
      add(part.second, wanted.second);
    }
    wanted.scaled[2].mul_(Wide(scale_)).add_(Wide(bias_));
    wanted.scaled[3].add_(Wide(bias_));
    wanted.scaled[5].mul_(Wide(scale_));
    return wanted;
  }
  // Which no adapter edits.
  static constexpr int64_t kBareRow = 6;
  const at::Tensor& y() const { return y_; }

 private:
  static constexpr int64_t kRows = 11;
  static constexpr float kFactor = 0.75f;
  struct Part {
    int64_t begin, end;
    std::pair<at::Tensor, at::Tensor> first, second;
  };
  at::Tensor Random(std::vector<int64_t> sizes) const {
    return at::randn(sizes).to(dtype_).to(device_);
  }
  std::pair<at::Tensor, at::Tensor> Factors(int64_t rank) const {
    return {Random({rank, in_}), Random({rank, out_})};
  }
  static at::Tensor Wide(const at::Tensor& x) { return x.cpu().to(at::kDouble); }

  int64_t in_, out_;
  at::ScalarType dtype_;
  at::Device device_;
  at::Tensor x_, y_, scale_, bias_;
  std::vector<Part> parts_;
};

}  // namespace graft::adapters
