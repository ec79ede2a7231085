#include "trainer/frozen_watch.h"

#include <utility>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/hash.h"
#include "base/status.h"
#include "base/text.h"
#include "models/device.h"
#include "models/memory_hash.h"

namespace graft::trainer {
namespace {

constexpr double kRoundSeconds = 30 * 60;

absl::Status Compare(const std::string& name, const char* where, uint64_t before, uint64_t now) {
  if (now == before) return absl::OkStatus();
  return BugError(absl::StrCat("frozen weight `", name, "`", where, ": hash64 was ", Hex64(before),
                               " at first and is ", Hex64(now),
                               "; nothing is saved from now on, the last checkpoint stays"));
}

}  // namespace

WatchedTensor::WatchedTensor(std::string name, const torch::Tensor& tensor,
                             std::optional<uint64_t> sent)
    : name_(std::move(name)),
      storage_(tensor.storage().getWeakStorageImpl()),
      offset_(tensor.storage_offset() * static_cast<int64_t>(tensor.element_size())),
      bytes_(static_cast<int64_t>(tensor.nbytes())),
      device_(tensor.device()),
      on_gpu_(!models::UsesHostKernels(tensor)),
      sent_(sent) {}

torch::Tensor WatchedTensor::Memory() const {
  c10::intrusive_ptr<c10::StorageImpl> storage = storage_.lock();
  if (!storage) return {};
  return at::empty({0}, torch::TensorOptions(torch::kUInt8).device(device_))
      .set_(c10::Storage(std::move(storage)), offset_, {bytes_}, {1});
}

void DerivedWeights::Append(const DerivedWeights& other) {
  copies.insert(copies.end(), other.copies.begin(), other.copies.end());
  matrices.insert(matrices.end(), other.matrices.begin(), other.matrices.end());
}

FrozenWatch::FrozenWatch(std::vector<WatchedTensor> loaded, DerivedWeights derived) {
  loaded.insert(loaded.end(), derived.copies.begin(), derived.copies.end());
  std::vector<torch::Tensor> memory;
  for (const WatchedTensor& tensor : loaded) {
    const torch::Tensor here = tensor.Memory();
    if (!here.defined()) continue;
    memory.push_back(here);
    entries_.push_back({tensor.name(), std::make_shared<WatchedTensor>(tensor), 0, {}});
  }
  const std::vector<uint64_t> hashes = models::MemoryHashes(memory);
  for (size_t i = 0; i < hashes.size(); ++i) {
    entries_[i].hash = hashes[i];
    if (arrival_.ok()) arrival_ = CompareWithSent(entries_[i]);
  }
  for (auto& [name, matrix] : derived.matrices) entries_.push_back({name, nullptr, 0, matrix});
}

absl::Status FrozenWatch::CompareWithSent(const Entry& entry) {
  const std::optional<uint64_t> sent = entry.tensor->sent();
  if (!sent.has_value() || *sent == entry.hash) return absl::OkStatus();
  return BugError(absl::StrCat("frozen weight `", entry.name,
                               "` has not arrived in GPU memory as it was sent: hash64 was ",
                               Hex64(*sent), " in host memory and is ", Hex64(entry.hash)));
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

absl::Status FrozenWatch::CheckPacked(const Entry& entry) {
  const auto matrix = entry.matrix.lock();
  if (!matrix) return absl::OkStatus();
  for (const models::PackedBytes& packed : matrix->Packed()) {
    GRAFT_RETURN_IF_ERROR(Compare(entry.name, " (packed) has changed in memory", packed.hash64,
                                  Hash64(packed.data, packed.size)));
  }
  return absl::OkStatus();
}

absl::Status FrozenWatch::Check(const std::vector<const Entry*>& entries) {
  std::vector<const Entry*> tensors;
  std::vector<torch::Tensor> memory;
  for (const Entry* const entry : entries) {
    if (!entry->tensor) {
      GRAFT_RETURN_IF_ERROR(CheckPacked(*entry));
    } else if (const torch::Tensor here = entry->tensor->Memory(); here.defined()) {
      tensors.push_back(entry);
      memory.push_back(here);
    }
  }
  const std::vector<uint64_t> hashes = models::MemoryHashes(memory);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Entry& entry = *tensors[i];
    const bool on_gpu = entry.tensor->on_gpu();
    GRAFT_RETURN_IF_ERROR(Compare(entry.name,
                                  on_gpu ? " has changed in GPU memory" : " has changed in memory",
                                  entry.hash, hashes[i]));
  }
  return absl::OkStatus();
}

absl::Status FrozenWatch::CheckSome(double seconds) {
  due_bytes_ += static_cast<double>(bytes()) * seconds / kRoundSeconds;
  std::vector<const Entry*> due;
  // At most one round a step, however long the step was.
  while (due.size() < entries_.size()) {
    const Entry& entry = entries_[next_];
    const auto bytes = static_cast<double>(BytesOf(entry));
    if (due_bytes_ < bytes) break;
    due_bytes_ -= bytes;
    next_ = (next_ + 1) % entries_.size();
    due.push_back(&entry);
  }
  return Check(due);
}

absl::Status FrozenWatch::CheckAll() const {
  std::vector<const Entry*> all;
  for (const Entry& entry : entries_) all.push_back(&entry);
  return Check(all);
}

}  // namespace graft::trainer
