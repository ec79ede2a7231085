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
  if (!storage) return false;
  *hash =
      Hash64(static_cast<const uint8_t*>(storage->data()) + offset_, static_cast<size_t>(bytes_));
  return true;
}

FrozenWatch::FrozenWatch(std::vector<WatchedTensor> tensors) {
  for (WatchedTensor& tensor : tensors) {
    uint64_t hash = 0;
    if (!tensor.Hash(&hash)) continue;
    bytes_ += tensor.bytes();
    entries_.push_back({std::move(tensor), hash});
  }
}

absl::Status FrozenWatch::Check(const Entry& entry) {
  uint64_t hash = 0;
  if (!entry.tensor.Hash(&hash) || hash == entry.hash) return absl::OkStatus();
  return BugError(absl::StrCat("frozen weight `", entry.tensor.name(),
                               "` has changed in memory: hash64 was ", Hex64(entry.hash),
                               " at load and is ", Hex64(hash),
                               "; nothing is saved from now on, the last checkpoint stays"));
}

absl::Status FrozenWatch::CheckSome(double seconds) {
  due_bytes_ += static_cast<double>(bytes_) * seconds / kRoundSeconds;
  // At most one round a step, however long the step was.
  for (size_t count = 0; count < entries_.size(); ++count) {
    const Entry& entry = entries_[next_];
    if (due_bytes_ < static_cast<double>(entry.tensor.bytes())) break;
    due_bytes_ -= static_cast<double>(entry.tensor.bytes());
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
