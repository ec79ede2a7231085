#include "trainer/tenants/tenant_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/text.h"
#include "models/device.h"
#include "models/weights/weight_source.h"
#include "sharding/model_encoder.h"

namespace graft::trainer {

absl::Status TenantTable::Add(const std::string& name, StoredAdapter adapter) {
  if (name.empty() || entries_.contains(name)) {
    return InputError(absl::StrCat("tenant: found \"", Printable(name),
                                   "\", must be a name that no other tenant has"));
  }
  const adapters::Method& method = *adapter.choice.method;
  if (method.trains_backbone()) {
    return RecipeError(absl::StrCat("tenant ", Printable(name), ": found method ", method.name(),
                                    ", which is a model of its own; allowed: adapters"));
  }
  Entry entry;
  entry.stored = std::make_shared<const StoredAdapter>(std::move(adapter));
  GRAFT_ASSIGN_OR_RETURN(auto ready, Prepare(entry.stored));
  entry.ready_bytes = ready->bytes();
  if (!Fits(entry.ready_bytes)) {
    return RecipeError(absl::StrCat("tenant ", Printable(name), ": needs ", entry.ready_bytes,
                                    " bytes to compute, the memory budget for all is ",
                                    options_.memory_budget));
  }
  Entry& kept = entries_.emplace(name, std::move(entry)).first->second;
  if (MakeRoom(kept.ready_bytes)) Keep(name, std::move(ready), &kept);
  return absl::OkStatus();
}

absl::Status TenantTable::Remove(const std::string& name) {
  GRAFT_RETURN_IF_ERROR(Check(name));
  const Entry& entry = entries_.at(name);
  if (entry.ready != nullptr) {
    if (entry.ready.use_count() > 1) leaving_.emplace_back(entry.ready, entry.ready_bytes);
    used_.remove(name);
    ready_bytes_ -= entry.ready_bytes;
  }
  entries_.erase(name);
  return absl::OkStatus();
}

absl::Status TenantTable::Check(const std::string& name) const {
  if (entries_.contains(name)) return absl::OkStatus();
  return InputError(absl::StrCat("tenant: found \"", Printable(name), "\", loaded are ",
                                 entries_.empty() ? "none" : JoinNames(names()),
                                 DidYouMean(name, names())));
}

absl::StatusOr<std::shared_ptr<const ReadyTenant>> TenantTable::Acquire(const std::string& name) {
  GRAFT_RETURN_IF_ERROR(Check(name));
  Entry& entry = entries_.at(name);
  if (entry.ready != nullptr) {
    used_.remove(name);
    used_.push_front(name);
    return entry.ready;
  }
  if (!MakeRoom(entry.ready_bytes)) return nullptr;
  GRAFT_ASSIGN_OR_RETURN(auto ready, Prepare(entry.stored));
  Keep(name, ready, &entry);
  return ready;
}

int64_t TenantTable::VirtualRows(const std::string& name) const {
  return entries_.at(name).stored->choice.method->virtual_rows();
}

std::vector<std::string> TenantTable::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) names.push_back(name);
  return names;
}

int64_t TenantTable::stored_bytes() const {
  int64_t sum = 0;
  for (const auto& [name, entry] : entries_) sum += entry.stored->bytes();
  return sum;
}

absl::StatusOr<std::shared_ptr<const ReadyTenant>> TenantTable::Prepare(
    const std::shared_ptr<const StoredAdapter>& stored) {
  GRAFT_ASSIGN_OR_RETURN(auto encoder, EncoderOf(*stored->choice.method));
  GRAFT_ASSIGN_OR_RETURN(const auto ready,
                         ReadyTenant::Prepare(*stored, backbone_, options_.dtype, encoder));
  // Whoever computes with it may do so on another stream.
  models::WaitForDevice(backbone_.device());
  // The method lives in the stored form: a request that outlives its tenant keeps that, too.
  struct Both {
    std::shared_ptr<const StoredAdapter> stored;
    std::shared_ptr<const ReadyTenant> ready;
  };
  const auto both = std::make_shared<Both>(Both{stored, ready});
  return std::shared_ptr<const ReadyTenant>(both, both->ready.get());
}

absl::StatusOr<std::shared_ptr<adapters::PromptEncoder>> TenantTable::EncoderOf(
    const adapters::Method& method) {
  const adapters::PromptEncoderChoice* choice = method.prompt_encoder();
  if (choice == nullptr) return nullptr;
  // Tenants may share a frozen one; a trained one has weights of its own.
  const std::string key = absl::StrCat(choice->path, "\n", choice->pool);
  if (!choice->train) {
    if (auto encoder = encoders_[key].lock()) return encoder;
  }
  GRAFT_ASSIGN_OR_RETURN(
      const auto weights,
      models::OpenFolderWeights(choice->path, {.follow_links = options_.follow_links}));
  GRAFT_ASSIGN_OR_RETURN(
      std::shared_ptr<adapters::PromptEncoder> encoder,
      sharding::LoadModelEncoder(*choice, *weights, options_.dtype, backbone_.device()));
  if (!choice->train) encoders_[key] = encoder;
  return encoder;
}

bool TenantTable::MakeRoom(int64_t bytes) {
  if (options_.memory_budget == 0) return true;
  std::erase_if(leaving_, [](const auto& tenant) { return tenant.first.expired(); });
  int64_t held = bytes;
  for (const auto& [tenant, size] : leaving_) held += size;
  std::vector<std::string> idle;  // the longest unused first
  for (auto name = used_.rbegin(); name != used_.rend(); ++name) {
    const Entry& entry = entries_.at(*name);
    if (entry.ready.use_count() == 1) {
      idle.push_back(*name);
    } else {
      held += entry.ready_bytes;
    }
  }
  if (!Fits(held)) return false;
  for (const std::string& name : idle) {
    int64_t leaving = 0;
    for (const auto& [tenant, size] : leaving_) leaving += size;
    if (Fits(ready_bytes_ + leaving + bytes)) break;
    Evict(name);
  }
  return true;
}

void TenantTable::Keep(const std::string& name, std::shared_ptr<const ReadyTenant> ready,
                       Entry* entry) {
  entry->ready = std::move(ready);
  ready_bytes_ += entry->ready_bytes;
  used_.push_front(name);
}

void TenantTable::Evict(const std::string& name) {
  Entry& entry = entries_.at(name);
  entry.ready.reset();
  ready_bytes_ -= entry.ready_bytes;
  used_.remove(name);
  ++num_evictions_;
}

}  // namespace graft::trainer
