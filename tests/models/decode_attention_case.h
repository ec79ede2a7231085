// A decoding step's attention with a cache whose places hold anything: for tests of its forms.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/ATen.h>

#include "models/layers/decode_attention.h"
#include "models/layers/device_decode_attention.h"

namespace graft::models {

struct DecodeHeads {
  int64_t heads, kv_heads, width, window;
};
// One head for each, groups, more query heads than a block takes, odd and large widths, windows.
inline const std::vector<DecodeHeads> kDecodeHeads = {
    {4, 4, 64, 0},  {8, 2, 64, 0}, {32, 8, 128, 0}, {12, 1, 64, 0},  {9, 3, 20, 0},
    {2, 2, 256, 0}, {4, 2, 96, 0}, {8, 2, 64, 7},   {4, 4, 128, 300}};

// Rows at several positions of sequences in a cache of five places, `rows` rows each.
class DecodeCase {
 public:
  DecodeCase(const DecodeHeads& heads, int64_t rows, torch::Dtype dtype, torch::Device device)
      : shape_{heads.heads, heads.kv_heads, heads.width, heads.window} {
    at::manual_seed(3);
    const auto random = [&](std::vector<int64_t> sizes) {
      return at::randn(sizes).to(dtype).to(device);
    };
    const int64_t kv_width = heads.kv_heads * heads.width;
    const std::vector<int64_t> positions = {0, rows - 1, rows / 2, std::min<int64_t>(rows - 1, 7)};
    const auto count = static_cast<int64_t>(positions.size());
    q_ = random({count, heads.heads * heads.width});
    k_ = random({count, kv_width});
    v_ = random({count, kv_width});
    cache_ = {random({5, rows, kv_width}), random({5, rows, kv_width})};
    decoding_.positions = at::tensor(positions, at::kLong).to(device);
    decoding_.places = at::tensor(std::vector<int64_t>{3, 0, 4, 1}, at::kLong).to(device);
  }

  torch::Tensor OnDevice() const {
    return device::DecodeAttention(q_, k_, v_, decoding_, cache_, shape_);
  }
  // The host's kernel on copies of the places with the rows' own keys and values appended.
  torch::Tensor OnHost() const {
    std::vector<torch::Tensor> keys, values;
    std::vector<DecodingRow> rows;
    for (int64_t n = 0; n < q_.size(0); ++n) {
      const auto place = decoding_.places[n].item<int64_t>();
      const auto position = decoding_.positions[n].item<int64_t>();
      keys.push_back(cache_.keys[place].cpu().clone());
      values.push_back(cache_.values[place].cpu().clone());
      keys.back()[position].copy_(k_[n]);
      values.back()[position].copy_(v_[n]);
    }
    for (int64_t n = 0; n < q_.size(0); ++n) {
      const auto index = static_cast<size_t>(n);
      rows.push_back({n, &keys[index], &values[index], decoding_.positions[n].item<int64_t>() + 1});
    }
    const torch::Tensor q = q_.cpu();
    torch::Tensor out = at::empty_like(q);
    DecodeAttention(q, rows, shape_, out);
    return out;
  }
  // After OnDevice.
  bool HasStoredItsRows() const {
    for (int64_t n = 0; n < q_.size(0); ++n) {
      const auto place = decoding_.places[n].item<int64_t>();
      const auto position = decoding_.positions[n].item<int64_t>();
      if (!at::equal(cache_.keys[place][position], k_[n])) return false;
      if (!at::equal(cache_.values[place][position], v_[n])) return false;
    }
    return true;
  }

 private:
  AttentionShape shape_;
  torch::Tensor q_, k_, v_;
  device::PlacedRows cache_;
  DecodingInputs decoding_;
};

}  // namespace graft::models
