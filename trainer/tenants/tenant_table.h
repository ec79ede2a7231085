// The adapters of a server by name. They come and go while requests run; those that are ready to
// compute share a memory budget, and the one that was used longest ago goes back to its stored form
// when another needs room. Used by the engine (engine.h), on one thread.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/tenants/tenant.h"

namespace graft::trainer {

class TenantTable {
 public:
  struct Options {
    torch::Dtype dtype = torch::kFloat32;  // of the backbone
    int64_t memory_budget = 0;             // bytes of ready tenants; 0 = no limit
    bool follow_links = false;             // for the files of prompt encoders
  };
  // `backbone` must outlive the table.
  TenantTable(models::Backbone& backbone, Options options)
      : backbone_(backbone), options_(options) {}

  // Error kind input: a name that is taken or empty; kind recipe: the method trains the backbone,
  // or the budget is too small for this adapter alone. Then the table is as it was.
  absl::Status Add(const std::string& name, StoredAdapter adapter);
  // Requests that run with it end with it; kind input for an unknown name.
  absl::Status Remove(const std::string& name);
  // Kind input, listing the names, for an unknown one.
  absl::Status Check(const std::string& name) const;

  // Ready to compute, for as long as the pointer is held; null while running requests hold so much
  // of the budget that it has to wait. Kind input for an unknown name; other errors as of Prepare.
  absl::StatusOr<std::shared_ptr<const ReadyTenant>> Acquire(const std::string& name);
  // What any of its requests brings in front of the prompt. The name must be known.
  int64_t VirtualRows(const std::string& name) const;

  torch::Dtype dtype() const { return options_.dtype; }
  std::vector<std::string> names() const;
  int64_t stored_bytes() const;
  int64_t ready_bytes() const { return ready_bytes_; }
  int64_t num_ready() const { return static_cast<int64_t>(used_.size()); }
  int64_t num_evictions() const { return num_evictions_; }

 private:
  struct Entry {
    std::shared_ptr<const StoredAdapter> stored;
    std::shared_ptr<const ReadyTenant> ready;  // null: evicted, or never used
    int64_t ready_bytes = 0;
  };
  absl::StatusOr<std::shared_ptr<const ReadyTenant>> Prepare(
      const std::shared_ptr<const StoredAdapter>& stored);
  absl::StatusOr<std::shared_ptr<adapters::PromptEncoder>> EncoderOf(
      const adapters::Method& method);
  // Evicts idle tenants until `bytes` more fit; false when those in use leave no room.
  bool MakeRoom(int64_t bytes);
  void Keep(const std::string& name, std::shared_ptr<const ReadyTenant> ready, Entry* entry);
  void Evict(const std::string& name);
  bool Fits(int64_t bytes) const {
    return options_.memory_budget == 0 || bytes <= options_.memory_budget;
  }

  models::Backbone& backbone_;
  Options options_;
  std::map<std::string, Entry> entries_;
  std::list<std::string> used_;  // names of the ready ones, the latest first
  // Ready tenants that were removed while requests run with them still take memory.
  std::vector<std::pair<std::weak_ptr<const ReadyTenant>, int64_t>> leaving_;
  std::map<std::string, std::weak_ptr<adapters::PromptEncoder>>
      encoders_;  // frozen ones, by folder
  int64_t ready_bytes_ = 0, num_evictions_ = 0;
};

}  // namespace graft::trainer
