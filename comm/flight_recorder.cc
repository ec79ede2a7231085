#include "comm/flight_recorder.h"

#include <algorithm>
#include <cstring>

namespace graft::comm {
namespace {

constexpr auto kRelease = std::memory_order_release;
constexpr auto kAcquire = std::memory_order_acquire;

}  // namespace

int FlightRecorder::AddGroup(const std::string& name, int rank, int size) {
  const int index = num_groups_.load(kAcquire);
  if (index == kGroups) return -1;
  GroupSlot& group = groups_[static_cast<std::size_t>(index)];
  std::memcpy(group.name.data(), name.data(), std::min(name.size(), group.name.size() - 1));
  group.rank = rank;
  group.size = size;
  num_groups_.store(index + 1, kRelease);
  return index;
}

int64_t FlightRecorder::Begin(const FlightEntry& entry) {
  const int64_t sequence = next_.load(kAcquire);
  Slot& slot = SlotOf(sequence);
  slot.sequence.store(0, kRelease);
  slot.group.store(entry.group, kRelease);
  slot.number.store(entry.number, kRelease);
  slot.op.store(entry.op, kRelease);
  slot.type.store(entry.type, kRelease);
  slot.peer.store(entry.peer, kRelease);
  slot.bytes.store(entry.bytes, kRelease);
  slot.step.store(step_, kRelease);
  slot.micro_batch.store(micro_batch_, kRelease);
  slot.enqueued_ns.store(clock_(), kRelease);
  slot.waited_ns.store(0, kRelease);
  slot.finished_ns.store(0, kRelease);
  slot.sequence.store(sequence, kRelease);
  next_.store(sequence + 1, kRelease);
  return sequence;
}

void FlightRecorder::Wait(int64_t sequence) {
  Slot& slot = SlotOf(sequence);
  if (slot.sequence.load(kAcquire) == sequence && slot.waited_ns.load(kAcquire) == 0) {
    slot.waited_ns.store(clock_(), kRelease);
  }
  waiting_.store(sequence, kRelease);
}

void FlightRecorder::StopWaiting(int64_t sequence) {
  Slot& slot = SlotOf(sequence);
  if (slot.sequence.load(kAcquire) == sequence) slot.waited_ns.store(0, kRelease);
  waiting_.store(0, kRelease);
}

void FlightRecorder::Finish(int64_t sequence) {
  Slot& slot = SlotOf(sequence);
  if (slot.sequence.load(kAcquire) == sequence) slot.finished_ns.store(clock_(), kRelease);
  if (waiting() == sequence) waiting_.store(0, kRelease);
}

bool FlightRecorder::Read(int64_t sequence, FlightEntry* entry) const {
  const Slot& slot = slots_[static_cast<std::size_t>(sequence % kEntries)];
  if (sequence < 1 || slot.sequence.load(kAcquire) != sequence) return false;
  entry->sequence = sequence;
  entry->group = slot.group.load(kAcquire);
  entry->number = slot.number.load(kAcquire);
  entry->op = slot.op.load(kAcquire);
  entry->type = slot.type.load(kAcquire);
  entry->peer = slot.peer.load(kAcquire);
  entry->bytes = slot.bytes.load(kAcquire);
  entry->step = slot.step.load(kAcquire);
  entry->micro_batch = slot.micro_batch.load(kAcquire);
  entry->enqueued_ns = slot.enqueued_ns.load(kAcquire);
  entry->waited_ns = slot.waited_ns.load(kAcquire);
  entry->finished_ns = slot.finished_ns.load(kAcquire);
  return slot.sequence.load(kAcquire) == sequence;
}

std::vector<FlightEntry> FlightRecorder::Snapshot() const {
  std::vector<FlightEntry> entries;
  const int64_t last = begun();
  FlightEntry entry;
  for (int64_t sequence = std::max<int64_t>(1, last - kEntries + 1); sequence <= last; ++sequence) {
    if (Read(sequence, &entry)) entries.push_back(entry);
  }
  return entries;
}

std::vector<FlightGroup> FlightRecorder::Groups() const {
  std::vector<FlightGroup> groups;
  const int count = num_groups_.load(kAcquire);
  for (int i = 0; i < count; ++i) {
    const GroupSlot& group = groups_[static_cast<std::size_t>(i)];
    groups.push_back({group.name.data(), group.rank, group.size});
  }
  return groups;
}

}  // namespace graft::comm
