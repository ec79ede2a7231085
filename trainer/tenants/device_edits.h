// What the rows of a decoding step get from their tenants on a device: the tables of all sites
// (adapters/row_tables.h), one product for all low-rank edits of the linears that share an input,
// one pass for all scales and biases of a site. Used by MixedRows.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "adapters/row_tables.h"
#include "models/site.h"
#include "trainer/tenants/tenant.h"

namespace graft::trainer {

class DeviceEdits {
 public:
  // Of a site, of hooks with the same place among those of their tenants.
  struct Key {
    models::SiteId site;
    size_t wave = 0;
    friend bool operator<(const Key& a, const Key& b) {
      return std::pair(a.site, a.wave) < std::pair(b.site, b.wave);
    }
  };

  DeviceEdits(int64_t rows, torch::Dtype dtype, torch::Device device)
      : tables_(rows, dtype, device) {}
  // Rows [begin, end) get the low-rank edit of `hook`.
  void AddLowRank(const Key& key, int64_t begin, int64_t end, const RowHook& hook) {
    edits_[key].low_rank.push_back({begin, end, &hook});
  }
  // Vectors (W) float32 of a row; undefined = none. Their memory must live as long as this.
  void AddVectors(const Key& key, bool at_input, int64_t row, const torch::Tensor& scale,
                  const torch::Tensor& bias);
  // After the last of them.
  void MakeTables();
  const adapters::RowTables& tables() const { return tables_; }
  void PlaceAt(const torch::Tensor& memory) { tables_.PlaceAt(memory); }
  // What must be equal for two passes to launch the same work.
  std::vector<int64_t> Layout() const;

  bool Has(const Key& key) const { return edits_.contains(key); }
  torch::Tensor EditInput(const Key& key, const torch::Tensor& x) const;
  // A linear's y is edited in place where that is enough.
  torch::Tensor EditOutput(const Key& key, const torch::Tensor& x, torch::Tensor y,
                           models::SiteContext& context) const;

 private:
  struct LowRank {
    int64_t begin = 0, end = 0;
    const RowHook* hook = nullptr;
  };
  struct Edit {
    std::vector<LowRank> low_rank;
    // Tables by number.
    std::optional<size_t> down, up, at_input, at_output;
    int64_t first_column = 0;  // of the inner products
    int64_t rank() const;
  };
  void MakeLowRankTables(const std::vector<Edit*>& sharing);

  adapters::RowTables tables_;
  std::map<Key, Edit> edits_;
};

// Linears of a layer that read the same tensor go by the first of them.
models::Role InputOf(models::Role role);

}  // namespace graft::trainer
