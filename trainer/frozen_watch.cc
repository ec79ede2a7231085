#include "trainer/frozen_watch.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/hash.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::trainer {
namespace {

constexpr double kRoundSeconds = 30 * 60;

}  // namespace

WatchedTensor::WatchedTensor(std::string name, const torch::Tensor& tensor)
    : name_(std::move(name)),
      storage_(tensor.storage().getWeakStorageImpl()),
      offset_(tensor.storage_offset() * static_cast<int64_t>(tensor.element_size())),
      bytes_(static_cast<int64_t>(tensor.nbytes())) {}

bool WatchedTensor::Hash(uint64_t* hash) const {
  const c10::intrusive_ptr<c10::StorageImpl> storage = storage_.lock();
  if (!storage || storage->device_type() != c10::DeviceType::CPU) return false;
  *hash =
      Hash64(static_cast<const uint8_t*>(storage->data()) + offset_, static_cast<size_t>(bytes_));
  return true;
}

void DerivedWeights::Append(const DerivedWeights& other) {
  copies.insert(copies.end(), other.copies.begin(), other.copies.end());
  matrices.insert(matrices.end(), other.matrices.begin(), other.matrices.end());
}

FrozenWatch::FrozenWatch(std::vector<WatchedTensor> loaded, DerivedWeights derived) {
  for (WatchedTensor& tensor : loaded) Add(std::move(tensor));
  for (WatchedTensor& tensor : derived.copies) Add(std::move(tensor));
  for (auto& [name, matrix] : derived.matrices) entries_.push_back({name, nullptr, 0, matrix});
}

void FrozenWatch::Add(WatchedTensor tensor) {
  uint64_t hash = 0;
  if (!tensor.Hash(&hash)) return;
  const std::string name = tensor.name();
  entries_.push_back({name, std::make_shared<WatchedTensor>(std::move(tensor)), hash, {}});
}

int64_t FrozenWatch::BytesOf(const Entry& entry) {
  if (entry.tensor) return entry.tensor->bytes();
  int64_t bytes = 0;
  if (const auto matrix = entry.matrix.lock()) {
    for (const models::PackedBytes& packed : matrix->Packed())
      bytes += static_cast<int64_t>(packed.size);
  }
  return bytes;
}

int64_t FrozenWatch::bytes() const {
  int64_t bytes = 0;
  for (const Entry& entry : entries_) bytes += BytesOf(entry);
  return bytes;
}

absl::Status FrozenWatch::Compare(const Entry& entry, const char* what, uint64_t before,
                                  uint64_t now) {
  if (now == before) return absl::OkStatus();
  return BugError(absl::StrCat("frozen weight `", entry.name, "`", what,
                               " has changed in memory: hash64 was ", Hex64(before),
                               " at first and is ", Hex64(now),
                               "; nothing is saved from now on, the last checkpoint stays"));
}

absl::Status FrozenWatch::Check(const Entry& entry) {
  if (entry.tensor) {
    uint64_t hash = 0;
    if (!entry.tensor->Hash(&hash)) return absl::OkStatus();
    return Compare(entry, "", entry.hash, hash);
  }
  const auto matrix = entry.matrix.lock();
  if (!matrix) return absl::OkStatus();
  for (const models::PackedBytes& packed : matrix->Packed()) {
    GRAFT_RETURN_IF_ERROR(
        Compare(entry, " (packed)", packed.hash64, Hash64(packed.data, packed.size)));
  }
  return absl::OkStatus();
}

absl::Status FrozenWatch::CheckSome(double seconds) {
  due_bytes_ += static_cast<double>(bytes()) * seconds / kRoundSeconds;
  // At most one round a step, however long the step was.
  for (size_t count = 0; count < entries_.size(); ++count) {
    const Entry& entry = entries_[next_];
    const auto bytes = static_cast<double>(BytesOf(entry));
    if (due_bytes_ < bytes) break;
    due_bytes_ -= bytes;
    next_ = (next_ + 1) % entries_.size();
    GRAFT_RETURN_IF_ERROR(Check(entry));
  }
  return absl::OkStatus();
}

absl::Status FrozenWatch::CheckAll() const {
  for (const Entry& entry : entries_) GRAFT_RETURN_IF_ERROR(Check(entry));
  return absl::OkStatus();
}

}  // namespace graft::trainer
